use super::image_past::{self, Past};
use crate::journal::runs::{Run, runs};
use crate::journal::{Phase, Record, RunId, SCHEMA};
use crate::rbd::features::Features;
use proptest::prelude::*;
use serde_json::{Value, json};

/// One step: enable or disable these features, on an image that has those, with this result.
type Step = (bool, u64, u64, Value);

fn past(steps: &[Step]) -> Past {
    image_past::of(&run_on("f", "12ab", steps)).remove(0)
}

/// A run's records of an image of one name, in this cluster and of this id.
fn run_on(fsid: &str, id: &str, steps: &[Step]) -> Run {
    let records = records_on(fsid, id, steps);
    runs(&records, &|_| false).remove(0)
}

fn records_on(fsid: &str, id: &str, steps: &[Step]) -> Vec<Record> {
    let record = |number: usize, (on, features, before, result): &Step| Record {
        schema: SCHEMA,
        run: RunId("r".into()),
        step: u32::try_from(number).unwrap(),
        at: 0,
        phase: if result.is_null() { Phase::Intent } else { Phase::Outcome },
        action: json!({
            "target": { "storage": "s", "fsid": fsid, "id": id, "rbd_arguments": [],
                        "spec": { "pool": "rbd", "namespace": null, "image": "i" } },
            "change": if *on { "enable-features" } else { "disable-features" },
            "features": Features(*features),
        }),
        guest: Some(516),
        guest_uuid: None,
        image: Some("rbd/i".into()),
        before: json!({ "features": Features(*before) }),
        command: None,
        undoes: None,
        result: result.clone(),
        duration_ms: None,
    };
    steps.iter().enumerate().map(|(n, step)| record(n, step)).collect()
}

/// PVE bug 3969: two clusters, one name; and one name that was two images' one after the other.
#[test]
fn one_name_may_be_two_images_in_one_run() {
    let step = [(true, 0x1c, 0x1, done())];
    for (fsid, id, images) in [("f", "12ab", 1), ("g", "12ab", 2), ("f", "34cd", 2)] {
        let mut records = records_on("f", "12ab", &step);
        records.extend(records_on(fsid, id, &step).into_iter().map(|record| Record { step: 7, ..record }));
        let run = runs(&records, &|_| false).remove(0);
        assert_eq!((run.changes.len(), image_past::of(&run).len()), (2, images), "{fsid} {id}");
    }
}

fn done() -> Value {
    json!({ "result": "done", "duration_ms": 1 })
}

fn failed(errno: i32) -> Value {
    json!({ "result": "failed", "errno": errno, "message": "" })
}

#[test]
fn the_target_is_what_stood_before_in_what_the_run_changed() {
    let past = past(&[(false, 0x40, 0x45, done()), (true, 0x18, 0x5, done())]);
    let present = Features(0x1d);
    assert_eq!((past.touched, past.target(present)), (Features(0x58), Features(0x45)));
    for (there, on_the_way) in [(0x1d, true), (0x5, true), (0x45, true), (0xd, false), (0x5d, false)] {
        assert_eq!(past.changed_since(Features(there)).is_none(), on_the_way, "{there:#x}");
    }
    assert_eq!(past.changed_since(Features(0x4d)), Some((Features(0x40), Features(0x10))));
    let other = Features(0x13d);
    assert_eq!(past.changed_since(other), None, "what the run did not touch may change");
    assert_eq!(past.target(other), Features(0x165));
}

#[test]
fn a_change_that_failed_or_was_not_made_is_no_change() {
    for result in
        [failed(22), json!({ "result": "withheld", "why": "" }), json!({ "result": "busy", "why": "" })]
    {
        assert!(past(&[(true, 0x1c, 0x1, result)]).touched.is_empty());
    }
}

#[test]
fn of_a_change_that_may_have_been_made_the_image_tells() {
    for result in [Value::Null, failed(110)] {
        let past = past(&[(true, 0x1c, 0x1, result)]);
        assert_eq!(past.target(Features(0x1d)), Features(0x1));
        assert_eq!([0x1d, 0x1].map(|there| past.changed_since(Features(there))), [None, None]);
    }
}

#[test]
fn object_map_and_fast_diff_come_together() {
    assert_eq!(past(&[(true, 0x8, 0x5, done())]).touched, Features(0x18));
}

/// A set of changeable features that Ceph allows.
fn valid() -> impl Strategy<Value = u64> {
    prop_oneof![Just(0x0_u64), Just(0x4), Just(0x1c), Just(0x44), Just(0x5c)].prop_map(|set| set | 1)
}

proptest! {
    /// Whatever two changes a run makes, undoing it leads over allowed sets back to where it began.
    #[test]
    fn undoing_leads_back_over_sets_that_ceph_allows(a in valid(), b in valid()) {
        let (goes, comes) = (a & !b, b & !a);
        let steps: Vec<Step> = [(false, goes, a, done()), (true, comes, a & !goes, done())]
            .into_iter()
            .filter(|step| step.1 != 0)
            .collect();
        prop_assume!(!steps.is_empty());
        let past = past(&steps);
        let target = past.target(Features(b));
        prop_assert_eq!(target, Features(a));
        prop_assert_eq!(past.changed_since(Features(b & a)), None);
        prop_assert!([0x1, 0x5, 0x1d, 0x45, 0x5d].contains(&(b & a)));
    }
}
