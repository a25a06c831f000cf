//! README's example is what comes out on a real Ceph; what is printed as JSON is as `docs/*.schema.json` say.

use crate::common::node::{DEFAULT, Node, Ran, new_vmid};
use crate::common::{executable, wait_until};
use regex::Regex;
use serde_json::{Value, json};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

const POOL: &str = "xds_kvm_dev_data";

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn read(name: &str) -> String {
    std::fs::read_to_string(path(name)).unwrap()
}

/// VM 516 as `tests/demo` breaks it: journaling, an object map flagged invalid, the lock of a dead client.
fn broken_vm() -> Node {
    let node = Node::new();
    node.lab.ceph(&["osd", "pool", "create", POOL, "8"]);
    node.lab.rbd(&["pool", "init", POOL]);
    node.storage(POOL, &format!("krbd 1; pool {POOL}"));
    node.vm(516, &read("tests/fixtures/vectors/qemu/516.conf"));
    // The snippets that its config names.
    node.append("/etc/pve/storage.cfg", "\ncephfs: cephfs\n\tpath /mnt/pve/cephfs\n\tcontent snippets\n");
    node.write("/mnt/pve/cephfs/snippets/user-516.yaml", "#cloud-config\n");
    executable(&node.path("/var/lib/vz/snippets/preflight"), "#!/bin/sh\n");
    let image = |name: &str| format!("{POOL}/vm-516-{name}");
    for name in ["disk-0", "disk-1", "disk-2", "cloudinit"] {
        // Of an earlier run of this test on the same lab.
        node.lab.try_rbd(&["rm", "--no-progress", &image(name)]);
        node.image(&image(name), DEFAULT);
    }
    node.lab.rbd(&["feature", "enable", &image("disk-1"), "journaling"]);
    for change in ["disable", "enable"] {
        node.lab.rbd(&["feature", change, &image("disk-2"), "object-map,fast-diff"]);
    }
    node.lab.writer(&image("disk-0")).kill();
    wait_until("the dead writer's watch is gone", Duration::from_secs(60), || {
        node.lab.rbd_json(&["status", &image("disk-0")])["watchers"].as_array().is_some_and(Vec::is_empty)
    });
    node
}

/// Without what is another at each run: clients, addresses, times.
fn normal(text: &str) -> String {
    let mut text = text.to_owned();
    for (pattern, word) in [
        (r"client\.\d+", "client.N"),
        (r"\d+\.\d+\.\d+\.\d+:0/\d+", "ADDRESS"),
        (r"\(\d+\.\d s\)", "(TIME)"),
        (r" in \d+ s", " in TIME"),
    ] {
        text = Regex::new(pattern).unwrap().replace_all(&text, word).into_owned();
    }
    text
}

#[test]
fn readmes_example_is_what_comes_out() {
    let node = broken_vm();
    let runs = [
        ("check 516", node.run(["check", "516"])),
        ("repair 516 --dry-run", node.run(["repair", "516", "--dry-run"])),
        ("repair 516 --yes", node.run(["repair", "516", "--yes"])),
    ];
    let shown: String =
        runs.iter().map(|(words, ran)| format!("# rbd-preflight {words}\n{}", ran.stdout)).collect();
    let shown = shown.replace(node.path("/").to_str().unwrap(), "/");
    for name in ["README.md", "README.zh-CN.md"] {
        let document = read(name);
        let example = document.split("```").find(|block| block.starts_with("\n# rbd-preflight check 516\n"));
        let example = example.unwrap_or_else(|| panic!("{name} shows no `check 516`")).trim_start();
        if std::env::var_os("RBD_PREFLIGHT_WRITE_DOCS").is_some() && normal(example) != normal(&shown) {
            std::fs::write(path(name), document.replacen(example, &shown, 1)).unwrap();
            continue;
        }
        assert!(
            normal(example) == normal(&shown),
            "{name} does not show what comes out; tests/docs-generate writes it anew:\n{shown}"
        );
    }
}

/// The schema with every object closed: what it does not name is then an error. As published it is open, since
/// names may be added within a version.
fn closed(mut schema: Value) -> Value {
    if let Some(fields) = schema.as_object_mut() {
        let one_of_several = fields.contains_key("properties") && fields.contains_key("oneOf");
        if one_of_several {
            // The names of whichever holds are as good as its own.
            fields.insert("unevaluatedProperties".to_owned(), json!(false));
        } else if fields.contains_key("properties") {
            fields.insert("additionalProperties".to_owned(), json!(false));
        }
        for (name, value) in fields.iter_mut() {
            if !(one_of_several && name == "oneOf") {
                *value = closed(value.take());
            }
        }
    } else if let Some(list) = schema.as_array_mut() {
        list.iter_mut().for_each(|value| *value = closed(value.take()));
    }
    schema
}

/// What is wrong with an instance by a schema file's definition, or by the file itself: nothing, or a line each.
pub fn faults(file: &str, definition: &str, instance: &Value) -> String {
    const VALIDATE: &str = "
import json, sys, jsonschema
given = json.load(sys.stdin)
jsonschema.Draft202012Validator.check_schema(given['schema'])
for error in jsonschema.Draft202012Validator(given['schema']).iter_errors(given['instance']):
    print('/'.join(map(str, error.absolute_path)), error.message[:1000])
";
    let mut schema = closed(serde_json::from_str(&read(file)).unwrap());
    if !definition.is_empty() {
        let of = format!("#/$defs/{definition}");
        schema = json!({ "$schema": schema["$schema"], "$defs": schema["$defs"], "$ref": of });
    }
    // Debian's own, with Debian's jsonschema (tests/lab/install).
    let mut python = Command::new("/usr/bin/python3");
    python.args(["-I", "-c", VALIDATE]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut python = python.spawn().unwrap();
    let given = json!({ "schema": schema, "instance": instance }).to_string();
    python.stdin.take().unwrap().write_all(given.as_bytes()).unwrap();
    let output = python.wait_with_output().unwrap();
    assert!(output.status.success(), "the validator failed on {file}");
    String::from_utf8(output.stdout).unwrap()
}

/// The JSON of a run, which must be as the schema says.
fn valid(definition: &str, ran: &Ran) -> Value {
    let value: Value = serde_json::from_str(&ran.stdout).unwrap_or_else(|error| panic!("{error}: {ran:?}"));
    let faults = faults("docs/report.schema.json", definition, &value);
    assert!(faults.is_empty(), "not a `{definition}`:\n{faults}\n{value:#}");
    value
}

/// The schema takes a report for what it is, and none that is wrong in one place.
fn assert_refused(report: &Value) {
    let mut bads = [report.clone(), report.clone(), report.clone()];
    bads[0]["verdict"] = json!("fine");
    bads[1]["findings"][0]["remedy"]["kind"] = json!("magic");
    bads[2]["disks"][0].as_object_mut().unwrap().remove("access");
    let wrong = faults("docs/report.schema.json", "checks", &json!({ "schema": 1, "guests": bads }));
    for place in ["guests/0/verdict", "guests/1/findings/0/remedy/kind", "guests/2/disks/0"] {
        assert!(
            wrong.lines().any(|line| line.starts_with(&format!("{place} "))),
            "{place} is taken:\n{wrong}"
        );
    }
    assert_eq!(wrong.lines().count(), 3, "{wrong}");
}

/// A node with a guest that has something of everything: findings, changes, a snapshot, a clone, a missing image.
fn eventful() -> (Node, u32) {
    let (node, vmid, spec) = Node::with_vm("layering,exclusive-lock,journaling");
    node.lab.rbd(&["snap", "create", "--no-progress", &format!("{spec}@before")]);
    node.lab.rbd(&["snap", "protect", &format!("{spec}@before")]);
    node.lab.rbd(&["clone", &format!("{spec}@before"), &format!("rbd/vm-{vmid}-disk-1")]);
    let disk = |key: &str, number: u32| format!("{key}: ceph-krbd:vm-{vmid}-disk-{number}\n");
    node.vm(
        vmid,
        &[disk("scsi0", 0), disk("scsi1", 1), disk("scsi2", 2), "scsi3: nowhere:x\n".into()].concat(),
    );
    (node, vmid)
}

#[test]
fn what_is_printed_as_json_is_as_the_schema_says() {
    let (node, vmid) = eventful();
    let id = vmid.to_string();
    let file = node.path("/survey.json");
    let check = valid("check", &node.run(["check", &id, "--json", "--save-survey", file.to_str().unwrap()]));
    assert!(check["disks"][1]["facts"]["parents"].as_array().is_some_and(|p| p.len() == 1), "{check:#}");
    assert!(!check["actions"].as_array().unwrap().is_empty(), "{check:#}");
    assert_refused(&check);
    let survey: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    let wrong = faults("docs/survey.schema.json", "", &survey);
    assert!(wrong.is_empty(), "not a survey:\n{wrong}\n{survey:#}");

    let another = new_vmid();
    node.vm(another, "name: none\n");
    valid("checks", &node.run(["check", &id, &another.to_string(), "--json"]));
    std::fs::create_dir(node.path(&format!("/etc/pve/nodes/pve1/qemu-server/{}.conf", new_vmid()))).unwrap();
    node.image(&format!("rbd/vm-{}-disk-0", new_vmid()), "layering");
    let all = valid("checks", &node.run(["check", "--all", "--json"]));
    assert_eq!(all["unread"].as_array().map(Vec::len), Some(1), "{all:#}");
    assert!(all["findings"].as_array().is_some_and(|findings| !findings.is_empty()), "{all:#}");
    let here = valid("checks", &node.run(["check", "--here", "--json"]));
    assert_eq!(here["node"], "pve1", "{here:#}");
    valid("rehearsal", &node.run(["rehearse", "--node", "pve1", "--json"]));
    valid("disks", &node.run(["disks", &id, "--json"]));
    valid("check", &node.run(["repair", &id, "--yes", "--json"]));
    valid("defaults", &node.run(["defaults", "--json"]));
    valid("defaults", &node.run(["defaults", "--set", "--dry-run", "--json"]));
    valid("defaults", &node.run(["defaults", "--set", "--yes", "--json"]));
    let history = valid("history", &node.run(["history", "--json"]));
    assert!(!history["runs"].as_array().unwrap().is_empty(), "{history:#}");
    valid("doctor", &node.run(["doctor", "--json"]));
    valid("attach", &node.run(["attach", &id, "--dry-run", "--json"]));
}

#[test]
fn what_start_prints_as_json_is_as_the_schema_says() {
    let (node, vmid, _) = Node::with_vm("layering,exclusive-lock,journaling");
    // A `qm` that never starts anything.
    executable(&node.path("/tools/qm"), "#!/bin/sh\nexit 255\n");
    let mut command = node.command(["start", &vmid.to_string(), "--yes", "--tries", "1", "--json"]);
    let tools = node.path("/tools");
    command.env("PATH", format!("{}:{}", tools.display(), std::env::var("PATH").unwrap()));
    let told = valid("start", &Ran::of(command));
    assert_eq!(told["tries"][0]["actions"][0]["result"], "done", "{told:#}");
}

/// A mapping that `sysfs` tells of, and what holds it open: only a survey has them.
#[test]
fn a_survey_with_mappings_is_as_the_schema_says() {
    let (node, vmid, spec) = Node::with_vm(DEFAULT);
    node.mapped(&spec);
    let trashed = format!("rbd/vm-{vmid}-disk-8");
    node.image(&trashed, DEFAULT);
    node.lab.rbd(&["trash", "mv", &trashed]);
    let config = format!("/etc/pve/nodes/pve1/qemu-server/{vmid}.conf");
    node.append(&config, &format!("scsi8: ceph-krbd:vm-{vmid}-disk-8,ro=1\n"));
    node.write("/sys/block/rbd0/holders/dm-3/x", "");
    node.write("/sys/block/dm-3/dev", "253:3\n");
    node.write("/sys/block/dm-3/dm/name", "crypt\n");
    let file = node.path("/survey.json");
    let ran = node.run(["check", &vmid.to_string(), "--json", "--save-survey", file.to_str().unwrap()]);
    valid("check", &ran);
    let survey: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    assert_eq!(survey["node"]["kernel"]["mappings"]["known"][0]["id"], 0, "{survey:#}");
    let holders = &survey["node"]["mapping_users"]["0"]["holders"]["known"];
    assert_eq!(holders[0]["block"]["name"], "crypt", "{survey:#}");
    let locked = &survey["node"]["mapping_users"]["0"]["locked"];
    assert_eq!(locked[vmid.to_string()], json!({ "known": false }), "{survey:#}");
    assert!(survey["node"]["kernel"]["mappings"]["known"][0]["made_at"].is_u64(), "{survey:#}");
    assert!(survey["disks"][1]["reading"]["in_trash"][0]["id"].is_string(), "{survey:#}");
    assert_eq!(survey["disks"][1]["read_only"], true, "{survey:#}");
    let wrong = faults("docs/survey.schema.json", "", &survey);
    assert!(wrong.is_empty(), "not a survey:\n{wrong}\n{survey:#}");
}
