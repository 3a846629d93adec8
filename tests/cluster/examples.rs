//! Every file of `deploy/examples`, as a person uses it: the commands in its head, or else `kubectl apply`. Its pods become ready, what
//! they wrote is read, and when it is deleted its volumes go. The chart has the settings of all `# needs:` lines (`rig::install`).

use std::fs;
use std::path::PathBuf;

use testkit::error::{Result, Trouble, ensure};
use testkit::kube::{claim, pod, until};

use crate::rig::{CLASS, Rig};

/// Where the examples are, from the top of the repository.
const DIRECTORY: &str = "deploy/examples";

/// Makes a test for each example, and the list of them.
macro_rules! examples {
    ($($test:ident: $file:literal $(after $prepare:expr)?, $check:expr;)*) => {
        const TESTED: &[&str] = &[$($file),*];
        $(#[test]
        fn $test() -> Result<()> {
            play($file, None$(.or(Some($prepare as Prepare)))?, $check)
        })*
    };
}

/// Makes what an example needs, and returns words in its commands that a person replaces, with what to write for them.
type Prepare = fn(&Rig) -> Result<[(&'static str, String); 2]>;

examples! {
    block: "block.yaml", |rig| reads(rig, "machine", "head -n 1 /dev/data", "the first bytes of a disk");
    clone: "clone.yaml", |rig| same(rig, "original", "copy");
    expansion: "expansion.yaml", |rig| {
        until("the filesystem to grow", || Ok((rig.cluster.filesystem("growing", "/data")? > 3 << 29).then_some(())))?;
        written(rig, "growing")
    };
    first_volume: "first-volume.yaml", |rig| written(rig, "first-volume");
    generic_ephemeral: "generic-ephemeral.yaml", |rig| reads(rig, "scratch", "stat -c %s /scratch/file", "67108864");
    growing_by_itself: "growing-by-itself.yaml", |rig| {
        reads(rig, "growing-by-itself", "stat -c %s /data/before /data/after", "209715200\n104857600")
    };
    inline_ephemeral: "inline-ephemeral.yaml", |rig| {
        rig.cluster.exec("inline", "grep -q ' /scratch ext4 ' /proc/mounts")?;
        reads(rig, "inline", "stat -c %s /scratch/file", "67108864")
    };
    linear: "linear.yaml", |rig| {
        reads(rig, "archive", "head -n 1 /archive/log | cut -d ' ' -f 1,2", "uid=1000 gid=1000")?;
        rig.cluster.exec("archive", "grep -q ' /archive xfs .*noatime' /proc/mounts")?;
        // It would stay.
        rig.reclaim(&rig.volume("archive")?, "Delete")
    };
    read_only: "read-only.yaml", |rig| {
        reads(rig, "reader", "cat /articles/index.html", "an article")?;
        reads(rig, "reader", "touch /articles/mine 2>/dev/null || echo refused", "refused")
    };
    snapshot: "snapshot.yaml", |rig| {
        same(rig, "notes", "notes-restored")?;
        let size = rig.cluster.filesystem("notes-restored", "/data")?;
        ensure(size > 3 << 29, || format!("the restored filesystem has {size} bytes"))
    };
    statefulset: "statefulset.yaml", |rig| {
        let pods = ["database-0", "database-1", "database-2"];
        pods.iter().try_for_each(|pod| reads(rig, pod, "cat /data/starts", &format!("{pod}\n{pod}")))
    };
    static_pv: "static-pv.yaml" after lost, |rig| {
        reads(rig, "recovered", "cat /data/log", "kept")?;
        // It would stay.
        rig.reclaim("recovered", "Delete")?;
        let volume = rig.cluster.get(&["pv/recovered"])?;
        let lv = volume["spec"]["csi"]["volumeHandle"].as_str().and_then(|handle| handle.rsplit('/').next()).unwrap_or_default();
        rig.cluster.delete(&["pod/recovered", "pvc/recovered"])?;
        rig.gone(&["recovered".to_owned(), lv.to_owned()])
    };
    thin: "thin.yaml", |rig| written(rig, "thin");
}

/// The `--set` options that the examples need, without the option itself.
pub(crate) fn needs() -> Result<Vec<String>> {
    let mut needs = Vec::new();
    for file in TESTED {
        let text = read(file)?;
        let Some(options) = text.lines().next().and_then(|line| line.strip_prefix("# needs: ")) else { continue };
        let setting =
            options.strip_prefix("--set ").ok_or_else(|| Trouble::wrong(format!("{file} needs no --set: {options}")))?;
        needs.push(setting.trim_matches('\'').to_owned());
    }
    Ok(needs)
}

#[test]
fn every_example_has_its_test() -> Result<()> {
    let directory = path("");
    let entries = fs::read_dir(&directory).map_err(Trouble::io(format!("reading {}", directory.display())))?;
    let mut found: Vec<String> = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    found.sort();
    ensure(found == TESTED, || format!("{DIRECTORY} has {found:?}, and there are tests of {TESTED:?}"))
}

fn path(file: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(DIRECTORY).join(file)
}

fn read(file: &str) -> Result<String> {
    fs::read_to_string(path(file)).map_err(Trouble::io(format!("reading {DIRECTORY}/{file}")))
}

/// Applies an example, checks it, deletes it, and waits until nothing of its volumes is left.
fn play(file: &str, prepare: Option<Prepare>, check: fn(&Rig) -> Result<()>) -> Result<()> {
    let rig = Rig::new(&format!("example-{}", file.trim_end_matches(".yaml")))?;
    let text = read(file)?;
    let mut commands: Vec<String> = text.lines().filter_map(|line| line.strip_prefix("#   ").map(str::to_owned)).collect();
    if commands.is_empty() {
        commands.push(format!("kubectl apply --filename {DIRECTORY}/{file}"));
    }
    let applied = commands.iter().any(|command| command.contains(file) && command.contains("kubectl apply "));
    ensure(applied, || format!("no command in the head of {file} applies it"))?;
    let words = prepare.map(|prepare| prepare(&rig)).transpose()?;
    for mut command in commands {
        for (word, value) in words.iter().flatten() {
            command = command.replace(word, value);
        }
        rig.paste(&command)?;
    }
    let pods = rig.cluster.kubectl(&["get", "pods", "--output=jsonpath={.items[*].metadata.name}"])?;
    rig.cluster.wait_ready(&pods.split_whitespace().collect::<Vec<_>>())?;
    let volumes = rig.volumes()?;
    check(&rig)?;
    let own = if text.contains("\n    csi:\n") { inline(&rig)? } else { Vec::new() };
    ensure(volumes.len() + own.len() > 0, || format!("{file} has no volume"))?;
    rig.paste(&format!("kubectl delete --ignore-not-found --filename {DIRECTORY}/{file}"))?;
    rig.clear()?;
    rig.gone(&volumes)?;
    until("the inline volumes to go", || {
        let left = if own.is_empty() { Vec::new() } else { inline(&rig)? };
        Ok((!own.iter().any(|volume| left.contains(volume))).then_some(()))
    })
}

/// The inline volumes on all nodes. Those of other tests are among them, and go as well.
fn inline(rig: &Rig) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for node in rig.cluster.nodes()? {
        let names = rig.cluster.on(&node, "lvs --noheadings --options lv_name --select 'lv_name=~^eh-'")?;
        found.extend(names.split_whitespace().map(str::to_owned));
    }
    Ok(found)
}

/// Makes a volume whose objects are lost.
fn lost(rig: &Rig) -> Result<[(&'static str, String); 2]> {
    rig.cluster.apply(&[claim("lost", CLASS, "1Gi"), pod("lost", &["lost"])])?;
    rig.cluster.wait_ready(&["lost"])?;
    rig.cluster.exec("lost", "echo kept >/lost/log; sync")?;
    let (volume, node) = (rig.volume("lost")?, rig.node_of("lost")?);
    let handle = rig.cluster.kubectl(&["get", "pv", &volume, "--output=jsonpath={.spec.csi.volumeHandle}"])?;
    rig.reclaim(&volume, "Retain")?;
    rig.cluster.delete(&["pod/lost", "pvc/lost", &format!("pv/{volume}")])?;
    Ok([("VG-UUID/LV", handle), ("node-a", node)])
}

/// Waits until a command in a pod prints this: a container is ready when it has started, and may not have written yet.
fn reads(rig: &Rig, pod: &str, command: &str, expected: &str) -> Result<()> {
    let mut last = String::new();
    let read = until(&format!("{pod} to print {expected:?}"), || {
        last = rig.cluster.exec(pod, &format!("{command} || true"))?;
        Ok((last == expected).then_some(()))
    });
    read.map_err(|trouble| Trouble::wrong(format!("{trouble}; the last output of {command} is {last:?}")))
}

/// Waits until a pod has written the date to its log.
fn written(rig: &Rig, pod: &str) -> Result<()> {
    until(&format!("{pod} to write"), || Ok(rig.cluster.exec(pod, "test -s /data/log && tail -n 1 /data/log").ok())).map(drop)
}

/// Fails unless the log of a copy is that of its source.
fn same(rig: &Rig, source: &str, copy: &str) -> Result<()> {
    let log = |pod| rig.cluster.exec(pod, "cat /data/log");
    let (expected, found) = (log(source)?, log(copy)?);
    ensure(!expected.is_empty() && found == expected, || format!("{copy} has {found:?}, and {source} {expected:?}"))
}
