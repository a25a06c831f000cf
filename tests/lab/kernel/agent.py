"""Runs commands in a node: one connection, one command. See `node run` and run.py, which talks to it.

Both sides send frames: a letter, the length (4 bytes, big end first), the data.
  r  the request, first of all: JSON {"argv": [...], "seconds": N, "stdin": bool}
  i  input (length 0: its end)    o, e  output and error output    x  the exit status, in figures; the last
The command gets a session of its own; all of it is killed when its time is up or nobody listens any more.
"""

import json
import os
import select
import signal
import socket
import struct
import time

PORT = 7777


def child(argv, stdin, stdout, stderr):
    try:
        os.setsid()
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        for target, source in enumerate((stdin, stdout, stderr)):
            os.dup2(source, target)
        os.closerange(3, 64)
        os.execvp(argv[0], argv)
    except OSError as error:
        os.write(2, f"{argv[0]}: {error.strerror}\n".encode())
    os._exit(127)


def frame(connection, letter, data):
    connection.sendall(letter + struct.pack(">I", len(data)) + data)


def receive(connection):
    def exactly(length):
        data = b""
        while len(data) < length:
            part = connection.recv(length - len(data))
            if not part:
                raise ConnectionResetError
            data += part
        return data

    head = exactly(5)
    return head[:1], exactly(struct.unpack(">I", head[1:])[0])


def run(connection):
    # Who neither sends nor takes anything for so long is gone.
    connection.settimeout(30)
    request = json.loads(receive(connection)[1])
    deadline = time.monotonic() + request["seconds"]
    in_read, in_write = os.pipe()
    out_read, out_write = os.pipe()
    err_read, err_write = os.pipe()
    pid = os.fork()
    if pid == 0:
        child(request["argv"], in_read, out_write, err_write)
    for end in (in_read, out_write, err_write):
        os.close(end)
    if request["stdin"]:
        os.set_blocking(in_write, False)
    else:
        os.close(in_write)
        in_write = None
    try:
        status = attend(connection, pid, deadline, in_write, out_read, err_read)
    except BaseException:
        os.killpg(pid, signal.SIGKILL)
        raise
    frame(connection, b"x", str(status).encode())


def attend(connection, pid, deadline, stdin, stdout, stderr):
    """Carries data both ways until the command ends; returns its exit status."""
    outputs = {stdout: b"o", stderr: b"e"}
    ended = os.pidfd_open(pid)
    caller = connection.fileno()
    poll = select.poll()
    for source in (caller, ended, stdout, stderr):
        poll.register(source, select.POLLIN)
    pending = b""  # input that the command has not taken yet; meanwhile no more is asked for
    waiting = False  # the poll includes the command's input
    last = False  # the end of the input has been seen

    def forward(source):
        data = os.read(source, 65536)
        if data:
            frame(connection, outputs[source], data)
        else:
            poll.unregister(source)
            del outputs[source]

    while True:
        left = deadline - time.monotonic()
        if left <= 0:
            os.killpg(pid, signal.SIGKILL)
            return 124
        ready = {source for source, _ in poll.poll(left * 1000)}
        for source in ready & set(outputs):
            forward(source)
        if caller in ready and not pending:
            _, data = receive(connection)
            if stdin is not None:
                pending, last = data, not data
        elif caller in ready:
            raise ConnectionResetError  # only a hang-up is watched for now
        if stdin is not None and (pending or last):
            try:
                pending = pending[os.write(stdin, pending) :] if pending else pending
            except BlockingIOError:
                pass
            except BrokenPipeError:
                pending, last = b"", True
            if pending:
                poll.register(stdin, select.POLLOUT)
                waiting = True
                poll.register(caller, select.POLLRDHUP)
            else:
                poll.register(caller, select.POLLIN)
                if waiting:
                    poll.unregister(stdin)
                    waiting = False
                if last:
                    os.close(stdin)
                    stdin = None
        if ended in ready:
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            break
    # What it wrote before its end; what it left running in the background is not waited for.
    while outputs and (ready := {source for source, _ in poll.poll(0)} & set(outputs)):
        for source in ready:
            forward(source)
    return 128 - status if status < 0 else status


def main():
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.create_server(("", PORT), backlog=64) as server:
        while True:
            connection, _ = server.accept()
            if os.fork() == 0:
                server.close()
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                try:
                    run(connection)
                except (BrokenPipeError, ConnectionResetError, TimeoutError):
                    pass
                os._exit(0)
            connection.close()


main()
