//! The commands of the documents that a newcomer follows, literally and in order: ```` ```sh ```` at the top of the repository,
//! ```` ```sh node ```` as root on each node. Only the disk is the lab's, and the images of the sidecars are.
//!
//! Each document begins in a cluster without the driver and without volume groups, and ends with the cluster as it was. So these tests
//! run one by one, before the others (`hack/cluster.d/run`).

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use std::{env, fs, thread};

use tempfile::TempDir;
use testkit::error::{Result, Trouble, ensure};
use testkit::kube::{Cluster, DISK, DRIVER, until};
use testkit::lab::say;
use testkit::markdown::{Block, Page};
use testkit::tool;

/// The disk that the documents speak of.
const THEIR_DISK: &str = "/dev/sdb";

/// Where on the nodes the documents have people copy the driver's image.
const ARCHIVE: &str = "/root/lvm-csi.tar";

/// Time limit of a block: it may wait for the driver's pods.
const PATIENCE: Duration = Duration::from_secs(300);

#[test]
fn readme_from_top_to_bottom() -> Result<()> {
    follow("README.md")
}

#[test]
fn installation_from_top_to_bottom() -> Result<()> {
    follow("docs/install.md")
}

fn follow(document: &str) -> Result<()> {
    static ALONE: Mutex<()> = Mutex::new(());
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let cluster = Cluster::find()?;
    for node in cluster.nodes()? {
        let groups = cluster.on(&node, "vgs --noheadings --options vg_name")?;
        ensure(groups.is_empty(), || format!("the documents need a new cluster, and {node} has the volume groups {groups}"))?;
    }
    let played = play(&cluster, document);
    // Also after a failure: the other tests begin with an empty cluster.
    let cleaned = clean(&cluster);
    played.and(cleaned)
}

fn play(cluster: &Cluster, document: &str) -> Result<()> {
    let path = top().join(document);
    let text = fs::read_to_string(&path).map_err(Trouble::io(format!("reading {document}")))?;
    let page = Page::read(&text).map_err(|line| Trouble::wrong(format!("{document}:{line}: this block has no end")))?;
    let terminal = Terminal::open(cluster)?;
    let (mut here, mut on_nodes) = (0, 0);
    say(&format!("\n{document}"));
    for Block { line, language, text } in page.blocks {
        let begun = Instant::now();
        let done = match language.as_str() {
            "sh" => {
                here += 1;
                terminal.paste(&text)
            }
            "sh node" => {
                on_nodes += 1;
                if text.contains(ARCHIVE) {
                    copy_image(cluster)?;
                }
                on_each_node(cluster, |node| on_node(cluster, node, &text))
            }
            _ => continue,
        };
        done.map_err(|trouble| Trouble::wrong(format!("{document}:{line}: {trouble}")))?;
        say(&format!("  line {line:<3} {language:<7} {:>6.1} s", begun.elapsed().as_secs_f64()));
    }
    ensure(here > 0 && on_nodes > 0, || format!("{document} has {here} blocks to run here and {on_nodes} for the nodes"))
}

fn top() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Runs a block on a node. Its programs have no input, so that one that asks a question gets no answer.
fn on_node(cluster: &Cluster, node: &str, block: &str) -> Result<()> {
    let block = block.replace(THEIR_DISK, DISK);
    let script = format!("bash -euo pipefail -c \"$(cat <<'END-OF-BLOCK'\n{block}\nEND-OF-BLOCK\n)\" </dev/null");
    cluster.on(node, &script).map(drop)
}

/// Does this for all nodes at once.
fn on_each_node(cluster: &Cluster, work: impl Fn(&str) -> Result<()> + Sync) -> Result<()> {
    let nodes = cluster.nodes()?;
    thread::scope(|scope| {
        let started: Vec<_> = nodes.iter().map(|node| scope.spawn(|| work(node))).collect();
        started.into_iter().try_for_each(|one| one.join().unwrap_or_else(|_| Err(Trouble::wrong("a thread has panicked"))))
    })
}

/// Copies the archive that `hack/image` has just made to the nodes, as a person does with scp and the names of their own nodes.
fn copy_image(cluster: &Cluster) -> Result<()> {
    let target = top().join(env::var_os("CARGO_TARGET_DIR").unwrap_or("target".into())).join("image");
    let entries = fs::read_dir(&target).map_err(Trouble::io(format!("reading {}", target.display())))?;
    let archives = entries.flatten().map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|end| end == "tar"));
    let newest = archives.max_by_key(|path| path.metadata().and_then(|about| about.modified()).ok());
    let archive = newest.ok_or_else(|| Trouble::wrong(format!("there is no image in {}", target.display())))?;
    on_each_node(cluster, |node| cluster.copy_to(node, &archive, ARCHIVE))
}

/// The shell of a person. Each block gets a new process, with the directory and the variables that the block before it has left. It
/// begins in a directory with a link to each entry of the repository, so that files that a document has people write stay out of that.
struct Terminal {
    directory: TempDir,
}

impl Terminal {
    fn open(cluster: &Cluster) -> Result<Self> {
        let directory = tempfile::tempdir().map_err(Trouble::io("making a directory"))?;
        let helm = directory.path().join("helm");
        fs::write(&helm, cluster.helm_with_images()).map_err(Trouble::io(format!("writing {}", helm.display())))?;
        fs::set_permissions(&helm, fs::Permissions::from_mode(0o755)).map_err(Trouble::io("making helm executable"))?;
        let checkout = directory.path().join("checkout");
        fs::create_dir(&checkout).map_err(Trouble::io("making a directory"))?;
        for entry in fs::read_dir(top()).map_err(Trouble::io("reading the repository"))?.flatten() {
            symlink(entry.path(), checkout.join(entry.file_name())).map_err(Trouble::io("linking the repository"))?;
        }
        Ok(Self { directory })
    }

    fn paste(&self, block: &str) -> Result<()> {
        let place = self.directory.path().display();
        // `set -a` exports all variables, so that they are in the list of exported ones.
        let script = format!(
            "PATH={place}:$PATH\ncd {place}/checkout\nif [ -e {place}/state ]; then . {place}/state; cd \"$PWD\"; fi\n\
             set -aeuo pipefail\n{block}\nset +a\nexport -p >{place}/state"
        );
        tool::finish_within(PATIENCE, tool::command("bash").args(["-c", &script])).map(drop)
    }
}

/// Removes everything that a document has made: objects, the driver, volume groups and the driver's directories.
fn clean(cluster: &Cluster) -> Result<()> {
    cluster.delete(&["statefulsets,deployments,jobs,pods,pvc", "--all"])?;
    cluster.delete(&["volumesnapshots", "--all"])?;
    until("the volumes to go", || {
        let left = cluster.kubectl(&["get", "pv,volumesnapshotcontents,volumeattachments", "--output=name"])?;
        Ok(left.trim().is_empty().then_some(()))
    })?;
    cluster.uninstall()?;
    cluster.delete(&["storageclasses,volumesnapshotclasses", "--all"])?;
    on_each_node(cluster, |node| {
        let script = format!(
            "vgs --noheadings --options vg_name | xargs --no-run-if-empty vgremove --quiet --yes --force; \
             pvs --noheadings --options pv_name | xargs --no-run-if-empty pvremove --quiet --yes; \
             rm -rf /var/lib/{DRIVER} /run/{DRIVER} {ARCHIVE}"
        );
        cluster.on(node, &script).map(drop)
    })
}
