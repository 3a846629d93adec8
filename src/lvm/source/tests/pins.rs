//! Pins that are being written when the driver dies or the power fails, and pins that a disk damaged.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use super::*;
use crate::host::{Moment, set_crash_hook};

fn trust(state: &Path) -> Trust {
    Trust { pins: Pins::kept(state), ..Trust::default() }
}

fn file(state: &Path) -> PathBuf {
    state.join("groups").join(format!("{GROUP}.json"))
}

fn stored(state: &Path) -> Option<Pin> {
    Pins::looked_at(state).load(&VgName::new(GROUP).unwrap()).unwrap()
}

/// The group with a third PV, as vgextend writes it to all of them.
fn extended(disks: &Disks) {
    let mut vg = Vg { seqno: SEQNO + 2, lvs: Vec::new(), ..Vg::parse(TEXT).unwrap() };
    vg.pvs.push(Pv { uuid: PvUuid::new(THIRD).unwrap(), key: "pv9".to_owned(), ..vg.pvs[0].clone() });
    let text = image::text(&vg);
    for (path, pv) in [("/dev/a", FIRST), ("/dev/b", SECOND), ("/dev/c", THIRD)] {
        disks.put(path, disk(pv, SEQNO + 2, &text, false));
    }
}

/// The whole group on another disk: the one of the second PV was replaced by a copy.
fn replaced(disks: &Disks) {
    let copy = disks.take("/dev/b");
    disks.put("/dev/e", copy);
    disks.identities.lock().unwrap().insert("/dev/e".into(), called("wwid:new", "8:64"));
}

/// Forged by a tenant: a text of the group with only his own PV, and any seqno.
fn stranger() -> Vec<u8> {
    const OTHER: &str = "fourth-K0ee-LKSj-dQHe-X1Yz-NpY1-wBqXJz";
    let real = Vg::parse(TEXT).unwrap();
    let pv = Pv { uuid: PvUuid::new(OTHER).unwrap(), ..real.pvs[0].clone() };
    disk(OTHER, 999_999, &image::text(&Vg { seqno: 999_999, pvs: vec![pv], lvs: Vec::new(), ..real }), false)
}

fn called(name: &str, instance: &str) -> DeviceIdentity {
    DeviceIdentity { names: vec![name.to_owned()], instance: instance.to_owned() }
}

/// One way to write a pin: the change of the disks, what the driver or a person does then, and how many disks the group has
/// afterwards.
type Writing = (&'static str, fn(&Disks), fn(&Source), usize);

const WRITINGS: [Writing; 3] = [
    ("the first pin", |_| {}, |source| drop(source.read().unwrap()), 2),
    ("a new PV", extended, |source| drop(source.read().unwrap()), 3),
    ("a person's word", replaced, |source| drop(source.adopt(None).unwrap()), 2),
];

/// Disks, and a state directory in which the group is pinned, unless the test writes the first pin.
fn machine(writing: Writing) -> (Arc<Disks>, tempfile::TempDir) {
    let (_, disks) = source(&both(SEQNO));
    disks
        .identities
        .lock()
        .unwrap()
        .extend([("/dev/a".into(), called("wwid:1", "8:0")), ("/dev/b".into(), called("wwid:2", "8:16"))]);
    let state = tempfile::tempdir().unwrap();
    if writing.0 != "the first pin" {
        reader(&disks, trust(state.path())).read().unwrap();
    }
    (writing.1)(&disks);
    (disks, state)
}

/// Writes a pin and dies at the given effect, if any; returns the effects.
fn write(writing: Writing, disks: &Arc<Disks>, state: &Path, death: Option<(usize, Moment)>) -> Vec<String> {
    let effects = Arc::<Mutex<Vec<String>>>::default();
    let noted = Arc::clone(&effects);
    let source = reader(disks, trust(state));
    set_crash_hook(Some(Arc::new(move |moment, name: &str, _: &str| {
        let mut noted = noted.lock().unwrap();
        if moment == Moment::Before {
            noted.push(name.to_owned());
        }
        let number = noted.len() - 1;
        drop(noted);
        if death == Some((number, moment)) {
            resume_unwind(Box::new("death"));
        }
    })));
    let ended = catch_unwind(AssertUnwindSafe(|| (writing.2)(&source)));
    set_crash_hook(None);
    assert_eq!(ended.is_err(), death.is_some(), "{}", writing.0);
    effects.lock().unwrap().clone()
}

#[test]
fn a_death_or_a_power_cut_while_a_pin_is_written_leaves_the_old_one_or_the_new_one() {
    let mut deaths = 0;
    for writing in WRITINGS {
        let (disks, state) = machine(writing);
        let effects = write(writing, &disks, state.path(), None);
        let new = stored(state.path()).unwrap();
        let expected: &[&str] = if writing.0 == "the first pin" { &["mkdir", "write", "rename"] } else { &["write", "rename"] };
        assert_eq!(effects, expected, "{}", writing.0);
        for (number, moment, cut) in (0..effects.len()).flat_map(|number| {
            [Moment::Before, Moment::After]
                .into_iter()
                .flat_map(move |moment| [false, true].map(move |cut| (number, moment, cut)))
        }) {
            let story = format!("{}, death {moment:?} {}, power cut: {cut}", writing.0, effects[number]);
            let (disks, state) = machine(writing);
            let old = stored(state.path());
            write(writing, &disks, state.path(), Some((number, moment)));
            let unfinished = file(state.path()).with_extension("new");
            if cut && effects[number] == "write" && moment == Moment::Before {
                // Some of its sectors were written.
                fs::create_dir_all(unfinished.parent().unwrap()).unwrap();
                fs::write(&unfinished, "{\n  \"format\": 2,\n  \"vg\": \"other0").unwrap();
            }
            let now = stored(state.path());
            let is_in_place = effects[number] == "rename" && moment == Moment::After;
            assert_eq!(now, if is_in_place { Some(new.clone()) } else { old.clone() }, "{story}");
            // The next start has a pin, and accepts no stranger.
            if now.is_some() {
                disks.put("/dev/x", stranger());
                let next = reader(&disks, trust(state.path()));
                let view = next.read().unwrap();
                assert!(!view.disks.values().any(|device| device == Path::new("/dev/x")), "{story}");
                assert!(view.vg.seqno < 999_999, "{story}");
                disks.take("/dev/x");
            }
            // Repeating the same action finishes what was not done.
            (writing.2)(&reader(&disks, trust(state.path())));
            assert_eq!(stored(state.path()).unwrap().pvs, new.pvs, "{story}");
            assert_eq!(reader(&disks, trust(state.path())).read().unwrap().disks.len(), writing.3, "{story}");
            deaths += 1;
        }
    }
    assert_eq!(deaths, 4 * (3 + 2 + 2));
}

#[test]
fn a_damaged_pin_is_restored_from_trusted_sources_only() {
    let (_, disks) = source(&both(SEQNO));
    let state = tempfile::tempdir().unwrap();
    let running = reader(&disks, trust(state.path()));
    assert_eq!(seqno(&running), SEQNO);
    let (good, path) = (stored(state.path()).unwrap(), file(state.path()));
    let damage = || {
        let mut bytes = fs::read(&path).unwrap();
        bytes[100] ^= 1;
        fs::write(&path, &bytes).unwrap();
        bytes
    };
    // From the running driver's memory.
    let bytes = damage();
    assert_eq!(seqno(&running), SEQNO);
    assert_eq!(stored(state.path()), Some(good.clone()));
    assert_eq!(fs::read(path.with_extension("damaged")).unwrap(), bytes);
    // From a copy of the metadata; the disks are away, and a stranger shows a group of the name.
    damage();
    let own = ["/dev/a", "/dev/b"].map(|device| (device, disks.take(device)));
    let (heir, text) = other_group(4);
    disks.put("/dev/x", disk(THIRD, 4, &text.replace(FIRST, THIRD), false));
    let next = reader(&disks, trust(state.path()));
    next.remember(&Vg::parse(TEXT).unwrap());
    assert!(matches!(next.read(), Err(ReadError::Ignored { device, .. }) if device == Path::new("/dev/x")));
    for (device, image) in &own {
        disks.put(device, image.clone());
    }
    assert_eq!((seqno(&next), stored(state.path())), (SEQNO, Some(good.clone())));
    // From nothing: whatever is there, this is no first look.
    damage();
    for stranger_alone in [false, true] {
        if stranger_alone {
            own.iter().for_each(|(device, _)| drop(disks.take(device)));
        } else {
            disks.take("/dev/x");
        }
        let next = reader(&disks, trust(state.path()));
        for _ in 0..2 {
            let error = next.read().unwrap_err();
            assert!(
                matches!(error, ReadError::Unpinned { .. }) && error.to_string().contains("lvm-csi adopt --vg vg"),
                "{error}"
            );
        }
        assert!(next.strangers().is_err() && next.pinned_group().is_none());
        if !stranger_alone {
            disks.put("/dev/x", disk(THIRD, 4, &text.replace(FIRST, THIRD), false));
        }
    }
    assert!(Pins::looked_at(state.path()).load(&VgName::new(GROUP).unwrap()).is_err());
    assert_ne!(heir, good.vg);
    // Until a person chooses.
    for (device, image) in &own {
        disks.put(device, image.clone());
    }
    let person = reader(&disks, trust(state.path()));
    let (view, before) = person.adopt(Some(vec!["/dev/a".into(), "/dev/b".into()])).unwrap();
    assert_eq!((&view.vg.uuid, before), (&good.vg, None));
    assert_eq!((seqno(&reader(&disks, trust(state.path()))), stored(state.path())), (SEQNO, Some(good)));
}
