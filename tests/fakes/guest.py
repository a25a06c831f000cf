"""qm and pct: what they have in common, which is nearly all."""

import os
import signal
import subprocess
import sys
import time
import uuid

import pve
from pve import Died


class Tool:
    def __init__(self, directory, lock, kind, ha):
        self.directory, self.lock_path, self.kind, self.ha = directory, lock, kind, ha

    def file(self, vmid):
        return f"/etc/pve/nodes/{pve.node()}/{self.directory}/{vmid}.conf"

    def load(self, vmid):
        """The main section's description, settings and raw lines, and the text of the other sections."""
        text = pve.read(self.file(vmid))
        if text is None:
            raise Died(f"Configuration file 'nodes/{pve.node()}/{self.directory}/{vmid}.conf' does not exist")
        main, header, others = text.partition("\n[") if not text.startswith("[") else ("", "[", text[1:])
        notes, conf, raw = [], {}, []
        for line in main.splitlines():
            key, colon, value = line.partition(":")
            if line.startswith("#"):
                notes.append(line)
            elif key.startswith("lxc."):
                raw.append(line)
            elif colon:
                conf[key] = value.strip()
        return notes, conf, raw, header.lstrip("\n") + others

    def save(self, vmid, notes, conf, raw, others):
        """As PVE writes a config: notes, then the settings in order of the alphabet, then the other sections."""
        lines = notes + [f"{key}: {conf[key]}" for key in sorted(conf)] + raw
        main = "".join(line + "\n" for line in lines)
        pve.write(self.file(vmid), main + ("\n" + others if others else ""))

    def lock(self, vmid):
        return pve.Lock(self.lock_path.format(vmid))

    def set(self, vmid, arguments):
        options = dict(zip(arguments[::2], arguments[1::2]))
        script, delete = options.pop("--hookscript", None), options.pop("--delete", None)
        if options or len(arguments) % 2 or (script is None) == (delete is None):
            raise Died(f"this stand-in knows only --hookscript VOLID and --delete hookscript: {arguments}")
        if script is not None:
            pve.check_hookscript(script)
        with self.lock(vmid):
            notes, conf, raw, others = self.load(vmid)
            self.check_lock(conf)
            if script is not None:
                conf["hookscript"] = script
                if self.kind == "qm":
                    print(f"update VM {vmid}: -hookscript {script}")
            else:
                conf.pop(delete, None)
                if self.kind == "qm":
                    print(f"update VM {vmid}: -delete {delete}")
            self.save(vmid, notes, conf, raw, others)

    def check_lock(self, conf):
        if "lock" in conf:
            raise Died(f"{'VM' if self.kind == 'qm' else 'CT'} is locked ({conf['lock']})")

    def config(self, vmid):
        for key, value in sorted(self.load(vmid)[1].items()):
            print(f"{key}: {value}")

    def pid_file(self, vmid):
        return f"/var/run/{self.directory}/{vmid}.pid"

    def pid(self, vmid):
        text = pve.read(self.pid_file(vmid), "")
        return int(text) if text and pve.alive(text.strip()) else None

    def status(self, vmid):
        self.load(vmid)
        print(f"status: {'running' if self.pid(vmid) else 'stopped'}")

    def start(self, vmid):
        pve.check_quorum()
        state = pve.ha_state(f"{self.ha}:{vmid}")
        if state not in (None, "ignored") and "FAKE_HA" not in os.environ:
            print(f"Requesting HA start for {'VM' if self.kind == 'qm' else 'CT'} {vmid}", flush=True)
            subprocess.run(["ha-manager", "set", f"{self.ha}:{vmid}", "--state", "started"], check=True)
            return
        with pve.Task(f"{'qm' if self.kind == 'qm' else 'vz'}start", vmid), self.lock(vmid):
            conf = self.load(vmid)[1]
            if conf.get("template") == "1":
                raise Died("you can't start a vm if it's a template")
            if self.pid(vmid):
                raise Died(f"{'VM' if self.kind == 'qm' else 'CT'} {vmid} already running")
            if conf.get("lock") != "suspended":
                self.check_lock(conf)
            # A container's volumes are activated before its hookscript is called, a VM's after.
            early = self.kind == "pct"
            if early:
                self.activate(vmid)
            pve.check_cicustom(conf, vmid)
            pve.exec_hookscript(conf, vmid, "pre-start", stop_on_error=True)
            if not early:
                self.activate(vmid)
            self.launch(vmid)
            pve.exec_hookscript(conf, vmid, "post-start")

    def activate(self, vmid):
        """ROOT/fakes.fail/VMID is how often the activation of volumes fails, or what follows, and with which words; what stands before a
        line `---` in it is printed before, as QEMU prints its own."""
        often, _, message = pve.read(f"/fakes.fail/{vmid}", "0").partition("\n")
        if int(often) > 0:
            pve.write(f"/fakes.fail/{vmid}", f"{int(often) - 1}\n{message}")
            printed, dies, words = message.partition("---\n")
            if dies:
                print(printed, end="", flush=True)
            raise Died((words if dies else message).strip())

    def launch(self, vmid):
        dummy = [sys.executable, "-c", "import time; time.sleep(600)", "-id", str(vmid)]
        quiet = subprocess.DEVNULL
        child = subprocess.Popen(dummy, stdin=quiet, stdout=quiet, stderr=quiet, start_new_session=True)
        pve.write(self.pid_file(vmid), f"{child.pid}\n")
        # In a test's tree /proc is the tree's own; in a whole system the process is there already.
        os.makedirs(pve.at("/proc"), exist_ok=True)
        if not os.path.exists(pve.at(f"/proc/{child.pid}")):
            os.symlink(f"/proc/{child.pid}", pve.at(f"/proc/{child.pid}"))

    def stop(self, vmid):
        with pve.Task(f"{'qm' if self.kind == 'qm' else 'vz'}stop", vmid), self.lock(vmid):
            conf, pid = self.load(vmid)[1], self.pid(vmid)
            if pid is None:
                return
            pve.exec_hookscript(conf, vmid, "pre-stop")
            os.kill(pid, signal.SIGKILL)
            while pve.alive(pid):
                time.sleep(0.02)
            os.unlink(pve.at(self.pid_file(vmid)))
            if os.path.islink(pve.at(f"/proc/{pid}")):
                os.unlink(pve.at(f"/proc/{pid}"))
            pve.exec_hookscript(conf, vmid, "post-stop")

    def destroy(self, vmid):
        """The config goes, and nothing besides that PVE does not know."""
        self.load(vmid)
        os.unlink(pve.at(self.file(vmid)))

    def clone(self, vmid, new):
        """Everything is copied but snapshots and what belongs to them; a VM gets a uuid of its own, hookscript and all."""
        notes, conf, raw, _ = self.load(vmid)
        conf = {key: value for key, value in conf.items() if key not in ("lock", "parent", "template")}
        if self.kind == "qm":
            conf["smbios1"] = f"uuid={uuid.uuid4()}"
        self.save(new, notes, conf, raw, "")

    def snapshot(self, vmid, name):
        """A section with all settings as they are, the hookscript too."""
        notes, conf, raw, others = self.load(vmid)
        copied = "".join(f"{key}: {conf[key]}\n" for key in sorted(conf) if key != "lock")
        self.save(vmid, notes, conf | {"parent": name}, raw, f"[{name}]\n{copied}" + ("\n" + others if others else ""))

    def rollback(self, vmid, name):
        """The section's settings take the place of the guest's."""
        notes, _, raw, others = self.load(vmid)
        section = others.split(f"[{name}]\n", 1)[1].split("\n[", 1)[0]
        lines = (line.partition(":") for line in section.splitlines())
        conf = {key: value.strip() for key, colon, value in lines if colon}
        self.save(vmid, notes, conf | {"parent": name}, raw, others)

    def run(self, arguments):
        command, vmid, rest = arguments[0], int(arguments[1]), arguments[2:]
        if command == "set":
            self.set(vmid, rest)
        elif command in ("config", "status", "start", "stop", "destroy") and not rest:
            getattr(self, command)(vmid)
        elif command in ("snapshot", "rollback") and len(rest) == 1:
            getattr(self, command)(vmid, rest[0])
        elif command == "clone" and len(rest) == 1:
            self.clone(vmid, int(rest[0]))
        else:
            raise Died(f"this stand-in does not know: {arguments}")
