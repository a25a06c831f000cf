//! Two sites with a Ceph each, and real rbd-mirror daemons between them: a guest starts where its images are primary,
//! although the other site's daemon has them open, and nowhere else.

use crate::common::node::{DEFAULT, Node, Ran};
use crate::common::{Lab, wait_until};
use std::process::Command;
use std::time::Duration;

/// Mirroring takes its time, and the machine may be busy: 11 s for the whole test if it is not.
const LONG: Duration = Duration::from_secs(240);
/// A guest whose image is mirrored by snapshots, and one by its journal. librbd opens both: no kernel maps a journal.
const IMAGES: [(u32, &str, &str); 2] =
    [(100, "snapshot", DEFAULT), (200, "journal", "layering,exclusive-lock,journaling")];

/// A site, and the name that it has for the other one.
struct Site {
    node: Node,
    name: &'static str,
}

impl Site {
    fn new(name: &'static str) -> Self {
        let node = Node::on(Lab::own(&["--watch-timeout", "10"]));
        node.write("/etc/rbd-preflight/config.yaml", "watcher_grace: 3\n");
        node.lab.rbd(&["mirror", "pool", "enable", "rbd", "image"]);
        for (vmid, ..) in IMAGES {
            node.vm(vmid, &format!("scsi0: ceph-librbd:vm-{vmid}-disk-0\n"));
        }
        Self { node, name }
    }

    /// Starts its rbd-mirror; the end of its lab is the daemon's too. It knows no `--conf` for the cluster that it is in.
    fn start_daemon(&self) {
        let lab = &self.node.lab;
        let user = format!("client.rbd-mirror.{}", self.name);
        let caps = ["mon", "profile rbd-mirror", "osd", "profile rbd"];
        let keyring = lab.ceph(&[&["auth", "get-or-create", &user][..], &caps[..]].concat());
        let file = |name: &str| lab.directory().join(name);
        std::fs::write(file(&format!("keyring.rbd-mirror.{}", self.name)), keyring).unwrap();
        let started = Command::new("rbd-mirror")
            .env("CEPH_CONF", lab.conf())
            .args(["-n", &user, "--pid-file"])
            .arg(file("run/mirror.pid"))
            .arg("--log-file")
            .arg(file("log/mirror.log"))
            .status();
        let started = started.unwrap_or_else(|error| panic!("rbd-mirror: {error}; tests/lab/install ceph"));
        assert!(started.success());
    }

    fn hook(&self, vmid: u32) -> Ran {
        self.node.run(["hook", &vmid.to_string(), "pre-start"])
    }

    fn mirror(&self, what: &str, vmid: u32) -> bool {
        let image = format!("rbd/vm-{vmid}-disk-0");
        let mut command = Command::new("timeout");
        command.arg("60").arg("rbd").args(["--conf", &self.node.lab.conf(), "mirror", "image", what, &image]);
        command.output().unwrap().status.success()
    }

    /// The addresses of those who have a guest's image open.
    fn watchers(&self, vmid: u32) -> Vec<String> {
        let status = self.node.lab.rbd_json(&["status", &format!("rbd/vm-{vmid}-disk-0")]);
        let all = status["watchers"].as_array().unwrap().iter();
        all.map(|watcher| watcher["address"].as_str().unwrap().to_owned()).collect()
    }

    /// The guests start here, and the daemon at the image is told.
    fn assert_starts(&self) {
        for (vmid, mode, _) in IMAGES {
            let ran = self.hook(vmid);
            assert!(ran.code == 0 && ran.stderr.contains("continuing with the start"), "{mode}: {ran:?}");
            assert!(!ran.stderr.contains("in-use"), "{mode}: {ran:?}");
        }
    }

    /// They do not: the images are copies here.
    fn assert_refuses(&self) {
        for (vmid, mode, _) in IMAGES {
            let ran = self.hook(vmid);
            assert!(ran.code != 0 && ran.stderr.contains("image-non-primary"), "{mode}: {ran:?}");
        }
    }
}

/// The images are primary here and copies there from now on.
fn turn(from: &Site, to: &Site) {
    for (vmid, mode, _) in IMAGES {
        wait_until(&format!("{mode}: demoted"), LONG, || from.mirror("demote", vmid));
        wait_until(&format!("{mode}: promoted"), LONG, || to.mirror("promote", vmid));
    }
}

#[test]
fn a_mirrored_guest_starts_at_its_primary_site_and_only_there() {
    let (a, b) = (Site::new("a"), Site::new("b"));
    let token = a.node.lab.directory().join("token");
    let told = a.node.lab.rbd(&["mirror", "pool", "peer", "bootstrap", "create", "--site-name", "a", "rbd"]);
    std::fs::write(&token, told).unwrap();
    let import =
        ["mirror", "pool", "peer", "bootstrap", "import", "--site-name", "b", "--direction", "rx-tx", "rbd"];
    b.node.lab.rbd(&[&import[..], &[token.to_str().unwrap()]].concat());
    a.start_daemon();
    b.start_daemon();
    for (vmid, mode, features) in IMAGES {
        a.node.image(&format!("rbd/vm-{vmid}-disk-0"), features);
        a.node.lab.rbd(&["mirror", "image", "enable", &format!("rbd/vm-{vmid}-disk-0"), mode]);
    }
    // `rbd mirror image status` would ask a manager, which the labs have none of.
    let copied = |vmid: u32| {
        let info = b.node.lab.try_rbd(&["info", "--format", "json", &format!("rbd/vm-{vmid}-disk-0")]);
        String::from_utf8_lossy(&info.stdout).contains("\"state\":\"enabled\"")
    };
    for (vmid, mode, _) in IMAGES {
        wait_until(&format!("{mode}: copied to the other site"), LONG, || copied(vmid));
    }
    wait_until("the other site's daemon has the image open", LONG, || !a.watchers(100).is_empty());

    a.assert_starts();
    a.node.assert_healthy(100);
    let told = a.node.run(["check", "-v", "100"]).stdout;
    assert!(told.contains(&format!("rbd-mirror at {} copies it", a.watchers(100)[0])), "{told}");
    b.assert_refuses();

    // A real writer beside the daemon.
    let daemons = a.watchers(100);
    let writer = a.node.lab.writer(&"rbd/vm-100-disk-0");
    let address = a.watchers(100).into_iter().find(|address| !daemons.contains(address)).unwrap();
    let ran = a.hook(100);
    assert!(ran.code == 4 && ran.stderr.contains("in-use-elsewhere"), "{ran:?}");
    let seen = ran.stderr.lines().find(|line| line.contains("seen:")).unwrap();
    assert!(seen.contains(&address) && !daemons.iter().any(|daemon| seen.contains(daemon)), "{ran:?}");
    assert!(writer.alive());
    writer.stop();

    turn(&a, &b);
    b.assert_starts();
    a.assert_refuses();
    turn(&b, &a);
    a.assert_starts();
    b.assert_refuses();
}
