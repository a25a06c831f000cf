"""What the stand-ins for qm, pct, pvesh and ha-manager share. They work on the tree RBD_PREFLIGHT_ROOT.

Written from facts about PVE 9 (what it prints, locks and exits with), not from its code; README.md says what was
compared with the real thing. Each notes in ROOT/fakes.log what it was called with, and when a hookscript begins and
ends: what stands between was called by the hookscript.
"""

import fcntl
import json
import os
import shlex
import subprocess
import sys
import time

ROOT = os.environ.get("RBD_PREFLIGHT_ROOT", "")
if ROOT in ("", "/"):
    sys.exit("RBD_PREFLIGHT_ROOT is not set: this is a stand-in for tests, not Proxmox VE")


class Died(Exception):
    """What Perl's die is: a message on stderr and a failure. The exit code is the errno that Perl has at hand, or 255."""

    def __init__(self, message, code=255):
        super().__init__(message)
        self.code = code


def at(path):
    return os.path.join(ROOT, path.lstrip("/"))


def read(path, default=None):
    try:
        with open(at(path), encoding="utf-8", errors="surrogateescape") as file:
            return file.read()
    except FileNotFoundError:
        return default


def write(path, text):
    """As PVE::Tools::file_set_contents: a new file, renamed over the old one. Without quorum pmxcfs lets nobody write."""
    if path.startswith("/etc/pve/") and not has_quorum():
        raise Died(f"unable to open file '{path}.tmp.{os.getpid()}' - Permission denied", code=2)
    os.makedirs(os.path.dirname(at(path)), exist_ok=True)
    new = at(f"{path}.tmp.{os.getpid()}")
    with open(new, "w", encoding="utf-8", errors="surrogateescape") as file:
        file.write(text)
    os.rename(new, at(path))


def log(line):
    with open(at("/fakes.log"), "a", encoding="utf-8") as file:
        file.write(line + "\n")


def has_quorum():
    """As PVE::Cluster::check_cfs_quorum: the owner's write bit of /etc/pve/local, which pmxcfs takes away. The bits of a test's link
    cannot be changed: there `.members` says it."""
    members = json.loads(read("/etc/pve/.members", "{}"))
    by_members = members.get("cluster", {}).get("quorate", 1) == 1
    return by_members and bool(os.lstat(at("/etc/pve/local")).st_mode & 0o200)


def check_quorum():
    if not has_quorum():
        raise Died("cluster not ready - no quorum?", code=2)


def node():
    """By the link, or, where a test has made it a directory so that its mode can be changed, by the host's name."""
    local = at("/etc/pve/local")
    return os.path.basename(os.readlink(local)) if os.path.islink(local) else os.uname().nodename.split(".")[0]


def main(run):
    """Runs a stand-in; a message of Died goes to stderr, and its code is the exit code."""
    name = os.path.basename(sys.argv[0])
    log(shlex.join([name] + sys.argv[1:]))
    try:
        run(sys.argv[1:])
    except Died as died:
        sys.stdout.flush()
        print(died, file=sys.stderr)
        sys.exit(died.code)


def storages():
    """storage.cfg: id -> its properties, `type` among them."""
    found, section = {}, None
    for line in read("/etc/pve/storage.cfg", "").splitlines():
        words = line.split(None, 1)
        if not words:
            section = None
        elif section is None:
            section = found.setdefault(words[1], {"type": words[0].rstrip(":")})
        else:
            section[words[0]] = words[1] if len(words) > 1 else "1"
    found.setdefault("local", {"type": "dir", "path": "/var/lib/vz", "content": "snippets"})
    return found


def snippet_directory(storage, tree=""):
    section = storages().get(storage)
    if section is None:
        raise Died(f"storage '{storage}' does not exist")
    overrides = dict(part.split("=", 1) for part in section.get("content-dirs", "").split(",") if "=" in part)
    return at(f"{tree}{section['path']}/{overrides.get('snippets', 'snippets')}")


def check_hookscript(volid):
    storage, name = volid.split(":", 1)
    if not name.startswith("snippets/"):
        raise Died(f"'{volid}' is not in the snippets directory")
    path = os.path.join(snippet_directory(storage), name[len("snippets/"):])
    if not os.path.isfile(path):
        raise Died(f"script '{volid}' does not exist")
    if not os.stat(path).st_mode & 0o111:
        raise Died(f"script '{volid}' is not executable")
    return path


def check_cicustom(conf, vmid):
    """PVE::QemuServer::Cloudinit reads the snippets of `cicustom` wherever there is a cloud-init image to be written."""
    image = any(f"vm-{vmid}-cloudinit" in value for key, value in conf.items() if key != "cicustom")
    for part in filter(None, conf.get("cicustom", "").split(",") if image else []):
        volid = part.split("=", 1)[1]
        storage, name = volid.split(":", 1)
        if not os.path.exists(os.path.join(snippet_directory(storage), name[len("snippets/"):])):
            raise Died(f"volume '{volid}' does not exist")


def exec_hookscript(conf, vmid, phase, stop_on_error=False):
    """stdin is at its end at once; stdout and stderr are read until both are closed, by whoever holds them."""
    if "hookscript" not in conf:
        return
    log(f"hook {vmid} {phase} begins")
    try:
        path = check_hookscript(conf["hookscript"])
        command = [path, str(vmid), phase]
        env = dict(os.environ, LC_ALL="C", LVM_SUPPRESS_FD_WARNINGS="1", PVE_MIGRATED_FROM="")
        sys.stdout.flush()
        child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env)
        out, err = child.communicate(b"")
        emit(out, sys.stdout)
        emit(err, sys.stderr)
        code = child.returncode
        if code:
            how = f"got signal {-code}" if code < 0 else f"exit code {code}"
            raise Died(f"command '{' '.join(command)}' failed: {how}")
    except (Died, OSError) as error:
        message = f"hookscript error for {vmid} on {phase}: {error}"
        if stop_on_error:
            raise Died(message) from error
        print(message, file=sys.stderr)
    finally:
        log(f"hook {vmid} {phase} ends")


def emit(output, stream):
    stream.buffer.write(output)
    stream.flush()


class Lock:
    """The config's lock: an exclusive flock, waited for 10 s."""

    def __init__(self, path, patience=10):
        self.path, self.patience = path, patience

    def __enter__(self):
        os.makedirs(os.path.dirname(at(self.path)), exist_ok=True)
        self.file = open(at(self.path), "a")
        until, told = time.monotonic() + self.patience, False
        while True:
            try:
                fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not told:
                    told = True
                    print("trying to acquire lock...", file=sys.stderr, flush=True)
                if time.monotonic() > until:
                    raise Died(f"can't lock file '{self.path}' - got timeout") from None
                time.sleep(0.05)
            else:
                if told:
                    print(" OK", file=sys.stderr)
                return self

    def __exit__(self, *_):
        self.file.close()


class Task:
    """A worker's log: /var/log/pve/tasks/<last digit of the start>/UPID…, ended by TASK OK or TASK ERROR.

    Both streams of a worker are one (fork_worker): what it, its hookscript and QEMU print comes on the stdout of whoever
    follows the task, and into the log. The error that it dies of is not among it: the program itself prints that on stderr.
    """

    def __init__(self, kind, vmid):
        now = f"{int(time.time()):08X}"
        upid = f"UPID:{node()}:{os.getpid():08X}:{0:08X}:{now}:{kind}:{vmid}:root@pam:"
        self.path = f"/var/log/pve/tasks/{now[7]}/{upid}"

    def __enter__(self):
        os.makedirs(os.path.dirname(at(self.path)), exist_ok=True)
        sys.stdout.flush()
        self.saved = [os.dup(1), os.dup(2)]
        self.tee = subprocess.Popen(["tee", "-a", at(self.path)], stdin=subprocess.PIPE, stdout=self.saved[0])
        for fd in (1, 2):
            os.dup2(self.tee.stdin.fileno(), fd)
        self.tee.stdin.close()
        return self

    def __exit__(self, _type, error, _trace):
        sys.stdout.flush()
        sys.stderr.flush()
        for fd, saved in zip((1, 2), self.saved):
            os.dup2(saved, fd)
            os.close(saved)
        self.tee.wait()
        with open(at(self.path), "a", encoding="utf-8") as file:
            file.write("TASK OK\n" if error is None else f"TASK ERROR: {error}\n")


def ha_state(sid):
    """The state that HA is asked for; None if it does not manage the guest, or was disarmed so that it ignores it."""
    if manager_status().get("disarm", {}).get("mode") == "ignore":
        return None
    section = state = None
    for line in read("/etc/pve/ha/resources.cfg", "").splitlines():
        words = line.split()
        if words and not line[0].isspace():
            section = f"{words[0].rstrip(':')}:{words[1]}"
            state = "started" if section == sid else state
        elif section == sid and words[:1] == ["state"]:
            state = words[1]
    return state


def alive(pid):
    """A process that has a command line: none, or a zombie, has not."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return bool(file.read())
    except OSError:
        return False


def manager_status():
    return json.loads(read("/etc/pve/ha/manager_status", "{}"))
