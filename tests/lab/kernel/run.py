"""Runs a command in a node and is to its caller what the command would be. See agent.py.

Usage: run.py NODE PID SECONDS stdin|- COMMAND...     (PID: the machine that the node is)
Exit status: the command's; 124 when its time is up; 125 when the node is not there or went away.
"""

import json
import os
import select
import socket
import struct
import sys
import threading

PORT = 7777

number, machine, seconds, stdin, *argv = sys.argv[1:]
address = f"10.78.0.{int(number) + 1}"


def gone(why):
    sys.stdout.flush()
    print(f"node {number} {why}", file=sys.stderr)
    sys.stderr.flush()
    os._exit(125)


def send(letter, data):
    connection.sendall(letter + struct.pack(">I", len(data)) + data)


def feed():
    while True:
        data = os.read(0, 65536)
        send(b"i", data)
        if not data:
            return


def receive(length):
    """A machine that is killed says no farewell on its connections, so both are watched."""
    data = b""
    while len(data) < length:
        ready = [source for source, _ in poll.poll(patience * 1000)]
        if not ready:
            gone("is stuck: no answer from it")
        if connection.fileno() not in ready:
            gone("went away while the command ran")
        part = connection.recv(length - len(data))
        if not part:
            gone("ended the connection while the command ran")
        data += part
    return data


try:
    alive = os.pidfd_open(int(machine))
except (OSError, ValueError):
    gone("is not running")
try:
    connection = socket.create_connection((address, PORT), timeout=5)
except OSError as error:
    gone(f"does not answer: {error}")

connection.settimeout(None)
# The agent keeps the time; if it says nothing long after, the node is stuck.
patience = float(seconds) + 10
poll = select.poll()
poll.register(connection, select.POLLIN)
poll.register(alive, select.POLLIN)
try:
    request = {"argv": argv, "seconds": float(seconds), "stdin": stdin == "stdin"}
    send(b"r", json.dumps(request).encode())
    if stdin == "stdin":
        threading.Thread(target=feed, daemon=True).start()
    while True:
        letter, length = struct.unpack(">cI", receive(5))
        data = receive(length)
        if letter == b"x":
            status = int(data)
            break
        target = sys.stdout if letter == b"o" else sys.stderr
        target.buffer.write(data)
        target.buffer.flush()
except OSError as error:
    gone(f"went away while the command ran: {error}")
if status == 124:
    print(f"node {number}: no end of the command within {seconds} s", file=sys.stderr)
sys.stdout.flush()
os._exit(status)
