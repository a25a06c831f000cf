//! Whatever does not end is ended, and whatever is cut off can be taken up again.

use crate::assert_said;
use crate::common::kernel::{KRBD, on_the_kernel, say};
use crate::common::node::DEFAULT;
use crate::common::wait_until;
use std::time::{Duration, Instant, SystemTime};

const WITH_STAND_IN: &str = "PATH=/run/lab-path:$PATH";

/// A map that never ends, as on older kernels whose user may not blocklist.
#[test]
fn a_map_that_never_ends() {
    on_the_kernel(|kernel| {
        let node = kernel.node(1);
        let (vmid, disks) = node.guest_with(&[(KRBD, DEFAULT), (KRBD, DEFAULT)]);
        node.assert_healthy(vmid);
        // Always, for the second disk.
        node.stand_in(
            "rbd",
            &format!("case \" $* \" in *' map '*{}*) echo x >>/run/lab-path/hung; exec sleep 98765;; esac\nexec /usr/bin/rbd \"$@\"", disks[1].image),
        );
        node.put("/etc/rbd-preflight/config.yaml", "deadline: 25\ncommand_timeout: 6\n");
        let ran = node.run(&format!("{WITH_STAND_IN} rbd-preflight hook {vmid} pre-start"));
        assert!(ran.took < Duration::from_secs(30), "{ran:#?}");
        assert_said(&ran, 3, &["map-failed", &disks[1].image]);
        let tries = node.must("cat /run/lab-path/hung").lines().count();
        assert_eq!(node.left_running(), "");

        // Only the first time; then there is time for another try, on a slow machine too.
        node.put("/etc/rbd-preflight/config.yaml", "deadline: 100\ncommand_timeout: 20\n");
        node.stand_in(
            "rbd",
            "case \" $* \" in *' map '*) if mkdir /run/lab-path/once 2>/dev/null; then exec sleep 98765; fi;; esac\nexec /usr/bin/rbd \"$@\"",
        );
        let ran = node.run(&format!("{WITH_STAND_IN} rbd-preflight hook {vmid} pre-start"));
        assert_said(&ran, 0, &[]);
        assert_eq!(
            node.must("ls -d /run/lab-path/once").trim(),
            "/run/lab-path/once",
            "the stand-in was called"
        );
        node.assert_ready(&disks);
        assert_eq!(node.left_running(), "");
        assert!(tries > 1, "one try is not enough");
    });
}

/// The hook's time counts from its beginning: a `modprobe` that hangs is within it, and says nothing of the module.
#[test]
fn a_modprobe_that_never_ends() {
    on_the_kernel(|kernel| {
        let node = kernel.node(1);
        let (vmid, _) = node.guest_with(&[(KRBD, DEFAULT)]);
        node.must("modprobe -r rbd");
        node.stand_in("modprobe", "exec sleep 98765");
        node.put("/etc/rbd-preflight/config.yaml", "deadline: 5\n");
        let ran = node.run(&format!("{WITH_STAND_IN} rbd-preflight hook {vmid} pre-start"));
        node.must("modprobe rbd");
        assert_eq!(ran.code, 0, "{ran:#?}");
        assert!(ran.stderr.contains("gave up after") && ran.took < Duration::from_secs(17), "{ran:#?}");
        assert_eq!(node.left_running(), "");
    });
}

/// The cluster stands still in the middle of a map.
#[test]
fn the_cluster_stops_in_the_middle_of_a_map() {
    on_the_kernel(|kernel| {
        let node = kernel.node(1);
        let (vmid, disks) = node.guest_with(&[(KRBD, DEFAULT), (KRBD, DEFAULT)]);
        node.stand_in(
            "rbd",
            "case \" $* \" in *' map '*) echo x >/run/lab-path/maps; until test -e /run/lab-path/go; do sleep 0.1; done;; esac\n\
             exec /usr/bin/rbd \"$@\"",
        );
        node.put("/etc/rbd-preflight/config.yaml", "deadline: 20\nconnect_timeout: 5\n");
        let hook = node.spawn(&format!("{WITH_STAND_IN} rbd-preflight hook {vmid} pre-start"));
        wait_until("it maps", Duration::from_secs(15), || node.run("test -e /run/lab-path/maps").code == 0);
        kernel.pause("all");
        node.must("touch /run/lab-path/go");
        let ran = hook.join().unwrap();
        let left = node.left_running();
        kernel.resume("all");
        assert!(ran.took < Duration::from_secs(24), "{ran:#?}");
        // Where it is not known how it stands, the start goes on; where it is, it does not.
        assert!(ran.code == 0 || ran.code == 3, "{ran:#?}");
        assert!(ran.stderr.contains("map") || ran.stderr.contains("cluster-unreachable"), "{ran:#?}");
        assert_eq!(left, "", "{ran:#?}");

        node.must("rm -f /etc/rbd-preflight/config.yaml");
        assert_said(&node.hook(vmid), 0, &[]);
        node.assert_ready(&disks);
    });
}

/// SIGKILL at any moment: the next run ends ready.
#[test]
fn killed_at_ten_moments_of_a_repair() {
    on_the_kernel(|kernel| {
        let node = kernel.node(1);
        let journaling = format!("{DEFAULT},journaling");
        let features: [(_, &str); 2] = [(KRBD, &journaling), (KRBD, "layering")];
        let (vmid, disks) = node.guest_with(&features);
        let whole = node.hook(vmid);
        assert_said(&whole, 0, &[]);
        node.assert_ready(&disks);
        for round in 0..10 {
            let (vmid, disks) = node.guest_with(&features);
            let nanos = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().subsec_nanos();
            let share = (f64::from(round) + f64::from(nanos % 1000) / 1000.0) / 10.0;
            let moment = whole.took.as_secs_f64() * share;
            let begun = Instant::now();
            let killed =
                node.run(&format!("timeout -s KILL {moment:.2} rbd-preflight hook {vmid} pre-start"));
            wait_until("its children died with it", Duration::from_secs(10), || {
                node.left_running().is_empty()
            });
            let ran = node.hook(vmid);
            say(&format!(
                "killed after {moment:.1} s ({}); ready {:.1} s later",
                killed.code,
                (begun.elapsed()).as_secs_f64() - moment
            ));
            assert_said(&ran, 0, &[]);
            node.assert_ready(&disks);
            for disk in &disks {
                assert!(!kernel.features(disk).contains(&"journaling".to_owned()));
                assert_eq!(kernel.flags(&disk.spec()), [""; 0], "{disk:?}");
            }
            node.unmap(&disks);
        }
    });
}

/// Eight guests of a node whose kernel client is dead, all started in one moment, while a ninth keeps that client alive.
#[test]
fn many_guests_at_once_on_a_dead_client() {
    on_the_kernel(|kernel| {
        let node = kernel.node(1);
        let (other, others) = node.guest_with(&[(KRBD, DEFAULT)]);
        let (_, leftovers) = node.guest_with(&[(KRBD, DEFAULT)]);
        let guests: Vec<_> = (0..8).map(|_| node.guest_with(&[(KRBD, DEFAULT)])).collect();
        assert_eq!(node.pve_start(&[&others[..], &leftovers].concat()), [0, 0]);
        let qemu = node.run_guest(other, &others[0]);
        let dead = node.blocklist_client_of(&others[0]);

        let hooks: Vec<String> = guests
            .iter()
            .map(|(vmid, _)| {
                format!("{{ rbd-preflight hook {vmid} pre-start >/run/hook.{vmid} 2>&1; echo $? >>/run/hook.{vmid}; }} &")
            })
            .collect();
        let begun = Instant::now();
        node.must(&format!("{}\nwait", hooks.join("\n")));
        say(&format!("8 hooks at once on a dead client: {:.1} s", begun.elapsed().as_secs_f64()));
        for (vmid, disks) in &guests {
            let said = node.must(&format!("cat /run/hook.{vmid}; rm /run/hook.{vmid}"));
            assert!(said.ends_with("\n0\n") && said.contains("continuing with the start"), "{said}");
            node.assert_ready(disks);
            assert_ne!(node.client_of(&disks[0]), dead);
        }
        assert_eq!(node.client_of(&others[0]), dead, "what a running guest uses is never unmapped");
        node.must(&format!("kill -0 {qemu}"));
        assert_eq!(node.left_running(), "");
    });
}
