"""journal.py FIELD=VALUE PROGRAM [ARGUMENT...]

Plays systemd's journal for a program: prints, as JSON, the fields of the first entry that has FIELD=VALUE, and ends the
program. https://systemd.io/JOURNAL_NATIVE_PROTOCOL
"""

import array
import json
import os
import socket
import subprocess
import sys


def fields(data):
    """The fields of an entry, each with its values."""
    found = {}
    while data:
        line, _, rest = data.partition(b"\n")
        name, equals, value = line.partition(b"=")
        if not equals:
            length = int.from_bytes(rest[:8], "little")
            value, rest = rest[8:8 + length], rest[8 + length + 1:]
        found.setdefault(name.decode(), []).append(value.decode())
        data = rest
    return found


os.makedirs("/run/systemd/journal")
journal = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
journal.bind("/run/systemd/journal/socket")
journal.settimeout(180)
name, _, value = sys.argv[1].partition("=")
program = subprocess.Popen(sys.argv[2:], stdout=subprocess.DEVNULL)
try:
    while True:
        data, control, _, _ = journal.recvmsg(1 << 20, socket.CMSG_LEN(4))
        for _, _, sent in control:
            with os.fdopen(array.array("i", sent)[0], "rb") as file:
                data = file.read()
        entry = fields(data)
        if value in entry.get(name, []):
            print(json.dumps(entry))
            break
finally:
    program.terminate()
    program.wait()
