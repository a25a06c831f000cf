"""Reads commands for a monitor from stdin, a line of JSON each, and carries them out on one connection.

`ceph COMMAND` takes half a second each time, most of it to start; a lab's start needs several.
Usage: mon_commands.py SECONDS     (the longest wait for the monitor)
"""

import sys

import rados

seconds = sys.argv[1]
with rados.Rados(conffile="", conf={"client_mount_timeout": seconds, "rados_mon_op_timeout": seconds}) as cluster:
    for line in sys.stdin:
        code, _, said = cluster.mon_command(line, b"")
        if code:
            sys.exit(f"{line.strip()}: {said} ({-code})")
