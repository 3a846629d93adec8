//! Who may import whom. Each directory of src/ is a room, and [`ROOMS`] lists the other rooms it may name. Some words (kernel
//! calls, programs, the wire) may appear in certain rooms only: [`WORDS`]. Code under `#[cfg(test)]` is exempt.
//!
//! The modules of `testkit`, which the tests are built on, have no table: none may import a module that imports it.
//!
//! The test reads sources as tokens, without comments and literals. That is enough for paths and needs no build. A path leaves a
//! room by `crate::room` (in main.rs `lvm_csi::room`). A `super` that leads out of a room is refused.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// What each room may import, besides itself and `types`, which all may import. An unused entry is an error, and so is a room
/// without an entry. `room::part` permits that part only.
const ROOMS: &[(&str, &[&str])] = &[
    ("types", &[]),
    // For the locations of certificates.
    ("config", &["tls"]),
    ("inflight", &[]),
    // The identities of controller and agents.
    ("tls", &[]),
    ("host", &[]),
    // How to drive LVM, without CSI.
    ("lvm", &["host"]),
    ("device", &["host"]),
    ("filesystem", &["host"]),
    ("mount", &["host"]),
    // Pure rules: they take the model of a group and return a command, with no way to run it.
    ("volume", &["lvm::metadata", "lvm::command"]),
    ("attach", &["host"]),
    // The trait `Agent` and its wire. `host`, because an operation on another machine is an effect; `inflight` for the call name
    // that both ends log.
    ("agent", &["volume", "attach", "host", "inflight", "tls"]),
    // What runs on the machine that has the volume groups. `mount` finds what it measures.
    ("machine", &["agent", "volume", "attach", "lvm", "device", "host", "inflight", "mount"]),
    // Decides where and does nothing itself. Whatever happens on a machine is behind the trait `agent::Agent`, so that it can be a
    // remote one.
    ("controller", &["agent", "volume", "attach"]),
    // `host` for the types that `Kernel` calls return.
    ("node", &["machine", "device", "filesystem", "mount", "volume", "attach", "inflight", "host"]),
    // `inflight`, because a node call holds its reservation throughout the operation.
    ("rpc", &["controller", "node", "volume", "attach", "inflight"]),
    // `inflight` waits for running calls at shutdown; `host` reports where a process hangs; `agent` and `tls` serve the agent of
    // this machine to controllers.
    ("server", &["rpc", "inflight", "host", "agent", "tls"]),
    // The only user of the Kubernetes client. It supplies certificates to `tls`.
    ("cluster", &["tls"]),
    // Chooses the effects, assembles the services of a role and runs it.
    (
        "role",
        &[
            "cluster",
            "config",
            "server",
            "rpc",
            "controller",
            "node",
            "agent",
            "machine",
            "attach",
            "lvm",
            "host",
            "inflight",
            "tls",
        ],
    ),
    // For the fuzzer and tests: names the parsers of all rooms.
    ("fuzzing", &["agent", "attach", "config", "device", "filesystem", "host", "lvm", "rpc", "volume"]),
    // What a person runs: the machine's agent without a server. It may ask the running driver for its health.
    (
        "cli",
        &["config", "machine", "attach", "controller::topology_key", "host", "inflight", "lvm", "server::ask_health", "volume"],
    ),
    // Turns flags into configuration, and is the child process that probes.
    ("main", &["cli", "config", "role", "server", "device", "host", "volume::import"]),
];

/// Paths that one room may not use although it may import their room.
const HIDDEN: &[(&str, &str)] = &[
    // A controller must not know which kind of agent it calls, so that it can call either.
    ("controller", "agent::Remote"),
];

/// Paths and words that may appear only in these places: a room, a directory in one, or one file.
const WORDS: &[(&str, &[&str])] = &[
    ("unsafe", &["host", "device"]),
    // The only way to the machine: every program that runs and every change is named, counted and timed there.
    ("std::process::Command", &["host"]),
    ("tokio::process", &[]),
    ("devicemapper", &["host"]),
    ("sys_mount", &["host"]),
    ("udev", &["host"]),
    ("nix::mount", &["host"]),
    // Files are changed through `host::files`, where each change is an effect. Exceptions: the crash points need files of their
    // own. LVM's configuration belongs to the driver alone; each start writes it afresh and puts it in place at once, so no
    // intermediate state matters. A process that changes its cgroup does so as part of its start.
    ("fs::write", &["host/apart.rs", "host/crash.rs"]),
    ("fs::create_dir", &[]),
    ("fs::create_dir_all", &[]),
    ("fs::remove_file", &["host/files.rs", "host/crash.rs", "lvm/conf.rs"]),
    ("fs::remove_dir", &["host/files.rs"]),
    ("fs::remove_dir_all", &[]),
    ("fs::rename", &["host/files.rs", "lvm/conf.rs"]),
    ("fs::copy", &[]),
    ("fs::hard_link", &[]),
    ("fs::set_permissions", &["host/files.rs", "lvm/conf.rs"]),
    ("fs::DirBuilder", &["host/apart.rs", "host/files.rs", "lvm/conf.rs"]),
    ("fs::OpenOptions", &["host"]),
    ("File::options", &["host/crash.rs", "lvm/conf.rs"]),
    ("File::create", &[]),
    ("File::create_new", &[]),
    ("os::unix::fs::FileExt", &["host"]),
    ("os::unix::fs::symlink", &["lvm/conf.rs"]),
    ("tokio::fs", &[]),
    ("nix::fcntl::fallocate", &["host"]),
    ("nix::unistd::unlink", &[]),
    ("UnixListener::bind", &["server/socket.rs"]),
    ("seccompiler", &["host/confine.rs"]),
    ("caps", &["host/confine.rs"]),
    // It parses tenants' bytes, so it runs only in the child process of probe.rs.
    ("libblkid_rs", &["device/probe.rs"]),
    // The wire: the rooms below know neither gRPC nor generated types, so a new CSI version changes one room. The server mounts the
    // generated services on its router. A remote agent has both ends of its own wire.
    ("lvm_csi_proto", &["rpc", "server", "agent/wire"]),
    // The server answers calls to services that are not offered. Between controller and agent a status describes only the
    // transport.
    ("tonic::Status", &["rpc", "server", "agent/wire/serve.rs", "agent/wire/remote.rs"]),
    ("tonic::Code", &["rpc", "agent/wire/remote.rs"]),
    ("tokio_rustls", &["tls"]),
    // Another way to find the nodes would change one room.
    ("kube", &["cluster"]),
    ("k8s_openapi", &["cluster"]),
    ("rcgen", &["cluster"]),
    // Untyped errors end a program, so the rooms below have none.
    ("anyhow", &["main", "role", "cli"]),
];

/// Files that know how a volume can lie on its disks: they make, read and configure placements. All others ask a placement, so a
/// new kind of placement changes only these files.
const PLACEMENTS: &[&str] = &["types/placement.rs", "types/pool.rs", "types/mod.rs", "volume/placement.rs", "config"];
/// The words that reveal such knowledge.
const OF_PLACEMENTS: &[&[&str]] = &[&["Thick"], &["Geometry"], &["Placement", "::", "Thin"], &["LayoutConfig"], &["is_linear"]];

/// A longer file has more than one subject.
const MOST_LINES: usize = 800;

#[test]
fn every_room_imports_only_what_it_may() {
    let mut found = Findings::default();
    let mut rooms = BTreeSet::new();
    for (room, file, text) in sources() {
        rooms.insert(room.clone());
        found.look(&room, &file, &text);
    }
    let table: BTreeSet<String> = ROOMS.iter().map(|(room, _)| (*room).to_owned()).collect();
    let unknown = rooms.difference(&table).map(|room| format!("src/{room} has no entry in ROOMS"));
    let gone = table.difference(&rooms).map(|room| format!("ROOMS has an entry for {room}, which is not in src; remove it"));
    found.wrong.extend(unknown.chain(gone));
    found.wrong.extend(found.stale());
    assert!(found.wrong.is_empty(), "\n  {}\n", found.wrong.join("\n  "));
}

#[test]
fn few_files_know_in_which_ways_a_volume_may_lie() {
    let mut wrong = Vec::new();
    let mut used = BTreeSet::new();
    for (room, file, text) in sources() {
        let (tokens, _) = without_tests(tokens(&text));
        for (at, token) in tokens.iter().enumerate() {
            let stands = |words: &&&[&str]| {
                tokens.len() - at >= words.len() && words.iter().zip(&tokens[at..]).all(|(word, token)| token.text == *word)
            };
            let Some(words) = OF_PLACEMENTS.iter().find(stands) else { continue };
            match PLACEMENTS.iter().find(|place| covers(place, &file)) {
                Some(allowed) => drop(used.insert(*allowed)),
                // The definition itself.
                None if room == "lvm" => {}
                None => wrong.push(format!("src/{file}:{}: {}; ask the placement", token.line, words.concat())),
            }
        }
    }
    wrong.extend(
        PLACEMENTS
            .iter()
            .filter(|place| !used.contains(*place))
            .map(|place| format!("src/{place} no longer needs its entry in PLACEMENTS")),
    );
    assert!(wrong.is_empty(), "\n  {}\n", wrong.join("\n  "));
}

#[test]
fn no_file_is_too_long() {
    let mut long = Vec::new();
    for directory in ["src", "proto/src", "hack/testkit/src", "hack/xtask/src", "tests"] {
        for path in rust_files(&top().join(directory)) {
            let lines = read(&path).lines().count();
            if lines > MOST_LINES {
                long.push(format!("{} has {lines} lines, more than {MOST_LINES}: split it by subject", path.display()));
            }
        }
    }
    assert!(long.is_empty(), "\n  {}\n", long.join("\n  "));
}

/// A module that cannot be read or changed without another, which cannot without the first, is one module in two files.
#[test]
fn the_modules_of_testkit_import_each_other_in_one_direction() {
    let src = top().join("hack/testkit/src");
    let files = rust_files(&src).into_iter().map(|path| {
        let file = path.strip_prefix(&src).expect("it was found below src").to_str().expect("our file names are UTF-8");
        (file.to_owned(), read(&path))
    });
    let circle = circle(&imports(files));
    assert!(circle.is_empty(), "modules of hack/testkit import each other in a circle: {}", circle.join(" → "));
}

/// For each module of a crate, given as its files with their paths below src, the others that it imports; lib.rs only declares them.
fn imports(files: impl IntoIterator<Item = (String, String)>) -> BTreeMap<String, BTreeSet<String>> {
    let mut imports: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (file, text) in files.into_iter().filter(|(file, _)| file != "lib.rs") {
        let module = module(&file);
        let paths = names(&text, depth(&file)).into_iter().map(|named| named.path);
        let others = paths.filter_map(|path| {
            // A super that leads to the crate is a way to its modules too.
            let mut parts = path.strip_prefix("crate::")?.split("::").skip_while(|part| *part == "super");
            parts.next().map(str::to_owned)
        });
        imports.entry(module.clone()).or_default().extend(others.filter(|other| *other != module));
    }
    imports
}

/// Modules of which each imports the next, and the last is the first again; none where there is no such circle.
fn circle(imports: &BTreeMap<String, BTreeSet<String>>) -> Vec<String> {
    // What imports nothing that is left is in no circle.
    let mut left = imports.clone();
    while let Some(free) = left.iter().find(|(_, others)| !others.iter().any(|other| left.contains_key(other))) {
        let free = free.0.clone();
        left.remove(&free);
    }
    // Each of those that remain imports another of them, so that this comes back to where it was.
    let mut way: Vec<String> = left.keys().next().cloned().into_iter().collect();
    while let Some(next) = way.last().and_then(|last| left[last].iter().find(|other| left.contains_key(*other))) {
        let before = way.iter().position(|module| module == next);
        way.push(next.clone());
        if let Some(before) = before {
            return way.split_off(before);
        }
    }
    way
}

/// Results of reading the sources.
#[derive(Default)]
struct Findings {
    /// Violations, for people.
    wrong: Vec<String>,
    /// Entries of [`ROOMS`] that are used.
    used: BTreeSet<(String, String)>,
    /// Places of [`WORDS`] where the word appears.
    placed: BTreeSet<(String, String)>,
}

impl Findings {
    /// Checks one file of a room. `file` is its path below src.
    fn look(&mut self, room: &str, file: &str, text: &str) {
        for Named { line, path } in names(text, depth(file)) {
            let place = format!("src/{file}:{line}");
            for (word, places) in WORDS {
                // Modules of std are also named by their last part.
                if within(&path, word) || within(path.strip_prefix("std::").unwrap_or(&path), word) {
                    match places.iter().find(|place| covers(place, file)) {
                        Some(allowed) => drop(self.placed.insert(((*word).to_owned(), (*allowed).to_owned()))),
                        None => self.wrong.push(format!("{place}: {word} may appear only in {places:?}")),
                    }
                }
            }
            if path == "crate" {
                self.wrong.push(format!("{place}: imports all rooms; name what is needed"));
            }
            let Some(other) = path.strip_prefix("crate::") else { continue };
            if other.starts_with("super") {
                self.wrong.push(format!("{place}: this `super` leaves the room; write `crate::`"));
            } else if !within(other, room) && !within(other, "types") {
                self.judge(room, &place, other);
            }
        }
    }

    fn judge(&mut self, room: &str, place: &str, other: &str) {
        let allowed = ROOMS.iter().find(|(name, _)| *name == room).map_or(&[][..], |(_, allowed)| allowed);
        let Some(entry) = allowed.iter().find(|entry| within(other, entry)) else {
            self.wrong.push(format!("{place}: {room} may not import {other}, only {allowed:?}"));
            return;
        };
        if HIDDEN.iter().any(|(from, path)| *from == room && within(other, path)) {
            self.wrong.push(format!("{place}: {other} is hidden from {room}"));
        }
        self.used.insert((room.to_owned(), (*entry).to_owned()));
    }

    /// Returns the permissions that nobody uses.
    fn stale(&self) -> Vec<String> {
        let unused = |used: &BTreeSet<(String, String)>, table: &[(&str, &[&str])], name: &str| {
            let pairs =
                table.iter().flat_map(|(key, values)| values.iter().map(|value| ((*key).to_owned(), (*value).to_owned())));
            let unused = pairs.filter(|pair| !used.contains(pair));
            unused
                .map(|(key, value)| format!("{name}: {value:?} in the entry of {key:?} is unused; remove it"))
                .collect::<Vec<_>>()
        };
        let mut stale = unused(&self.used, ROOMS, "ROOMS");
        // Unsafe code is permitted, not required.
        stale.extend(unused(&self.placed, WORDS, "WORDS").into_iter().filter(|text| !text.contains("\"unsafe\"")));
        stale
    }
}

/// Whether a place in the tables (a room, a directory in one, or a file) contains a file.
fn covers(place: &str, file: &str) -> bool {
    file.strip_prefix(place).is_some_and(|rest| rest.is_empty() || rest == ".rs" || rest.starts_with('/'))
}

/// Whether a path equals `outer` or lies inside it.
fn within(path: &str, outer: &str) -> bool {
    path.strip_prefix(outer).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

fn top() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("reading {}: {error}", path.display()))
}

/// Returns every Rust file below a directory, in order.
fn rust_files(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let entries = fs::read_dir(directory).unwrap_or_else(|error| panic!("reading {}: {error}", directory.display()));
    for entry in entries {
        let path = entry.expect("a source directory can be listed").path();
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files.sort();
    files
}

/// Returns room, path below src and text of every file of the driver that is not for tests only. lib.rs declares the rooms and
/// imports nothing; main.rs is a room.
fn sources() -> Vec<(String, String, String)> {
    let src = top().join("src");
    let mut files = BTreeMap::new();
    for path in rust_files(&src) {
        files.insert(
            path.strip_prefix(&src).expect("the path is below src").to_str().expect("our file names are UTF-8").to_owned(),
            read(&path),
        );
    }
    let testing: Vec<String> = files.iter().flat_map(|(file, text)| test_files(file, text)).collect();
    files.retain(|file, _| {
        file != "lib.rs" && !testing.iter().any(|name| file == &format!("{name}.rs") || file.starts_with(&format!("{name}/")))
    });
    files.into_iter().map(|(file, text)| (module(&file), file, text)).collect()
}

/// The module at the top of a crate that a file belongs to.
fn module(file: &str) -> String {
    file.split('/').next().unwrap_or(file).trim_end_matches(".rs").to_owned()
}

/// Returns the modules `#[cfg(test)] mod name;` of a file, as paths below src without `.rs`.
fn test_files(file: &str, text: &str) -> Vec<String> {
    let directory = match file.strip_suffix("mod.rs") {
        Some(directory) => directory.to_owned(),
        // The modules in lib.rs are the rooms themselves.
        None if file == "lib.rs" => String::new(),
        None => format!("{}/", file.trim_end_matches(".rs")),
    };
    let (_, modules) = without_tests(tokens(text));
    modules.into_iter().map(|name| format!("{directory}{name}")).collect()
}

/// Returns how many modules deep a file is in the crate.
fn depth(file: &str) -> usize {
    let parts = file.trim_end_matches(".rs").split('/');
    parts.filter(|part| !["mod", "main", "lib"].contains(part)).count()
}

/// A token of Rust.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Token {
    line: usize,
    /// A word, `::`, or one other character.
    text: String,
}

/// A path that a file names, with `crate` resolved: `crate::room::thing`, or a path of another crate.
#[derive(Debug, PartialEq, Eq)]
struct Named {
    line: usize,
    path: String,
}

/// Splits a text into tokens. Leaves out comments, string and character literals, and lifetimes.
fn tokens(text: &str) -> Vec<Token> {
    let bytes = text.as_bytes();
    let word = |at: usize| bytes.get(at).is_some_and(|b| b.is_ascii_alphanumeric() || *b == b'_' || *b >= 0x80);
    let end = |from: usize, mark: &str| text[from..].find(mark).map_or(text.len(), |found| from + found + mark.len());
    let mut tokens = Vec::new();
    let (mut at, mut line) = (0, 1);
    while at < bytes.len() {
        let from = at;
        let rest = &text[at..];
        if rest.starts_with("//") {
            at = end(at, "\n");
        } else if rest.starts_with("/*") {
            at = comment(text, at);
        } else if let Some(hashes) = raw_text(rest) {
            let open = end(at, "\"");
            at = end(open, &format!("\"{}", "#".repeat(hashes)));
        } else if bytes[at] == b'"' {
            at = quoted(bytes, at + 1, b'"');
        } else if bytes[at] == b'\'' {
            // A lifetime or a label has no quote after its first character.
            let letter = rest[1..].chars().next().map_or(0, char::len_utf8);
            let character = bytes.get(at + 1) == Some(&b'\\') || bytes.get(at + 1 + letter) == Some(&b'\'');
            at = if character { quoted(bytes, at + 1, b'\'') } else { at + 1 };
            while !character && word(at) {
                at += 1;
            }
        } else if word(at) {
            while word(at) {
                at += 1;
            }
            tokens.push(Token { line, text: text[from..at].to_owned() });
        } else {
            at += if rest.starts_with("::") { 2 } else { 1 };
            if !bytes[from].is_ascii_whitespace() {
                tokens.push(Token { line, text: text[from..at].to_owned() });
            }
        }
        line += text[from..at].matches('\n').count();
    }
    tokens
}

/// Returns the number of hashes of a raw string that begins here.
fn raw_text(rest: &str) -> Option<usize> {
    let rest =
        ["r", "br", "cr"].iter().find_map(|prefix| rest.strip_prefix(prefix).filter(|rest| rest.starts_with(['"', '#'])))?;
    let hashes = rest.bytes().take_while(|b| *b == b'#').count();
    // Without the quote it is a raw identifier such as `r#type`.
    rest[hashes..].starts_with('"').then_some(hashes)
}

/// Returns the end of a comment, which may contain others.
fn comment(text: &str, from: usize) -> usize {
    let (mut at, mut open) = (from + 2, 1);
    while open > 0 && at < text.len() {
        let bytes = &text.as_bytes()[at..];
        (at, open) = match bytes {
            [b'/', b'*', ..] => (at + 2, open + 1),
            [b'*', b'/', ..] => (at + 2, open - 1),
            _ => (at + 1, open),
        };
    }
    at
}

/// Returns the end of a string or character literal that began before `at`.
fn quoted(bytes: &[u8], mut at: usize, quote: u8) -> usize {
    while at < bytes.len() && bytes[at] != quote {
        at += if bytes[at] == b'\\' { 2 } else { 1 };
    }
    (at + 1).min(bytes.len())
}

/// Removes every item under `#[cfg(test)]`, and everything that exists only for tests and the fuzzer. Also returns the test modules
/// that are files of their own.
fn without_tests(tokens: Vec<Token>) -> (Vec<Token>, Vec<String>) {
    const TEST: &[&str] = &["#", "[", "cfg", "(", "test", ")", "]"];
    const FUZZ: &[&str] = &["#", "[", "cfg", "(", "any", "(", "test", ",", "fuzzing", ")", ")", "]"];
    let (mut kept, mut modules) = (Vec::new(), Vec::new());
    let mut at = 0;
    while at < tokens.len() {
        let stands = |mark: &&&[&str]| {
            tokens.len() - at >= mark.len() && mark.iter().zip(&tokens[at..]).all(|(mark, token)| token.text == *mark)
        };
        let Some(mark) = [TEST, FUZZ].iter().find(stands) else {
            kept.push(tokens[at].clone());
            at += 1;
            continue;
        };
        let item = at + mark.len();
        at = end_of_item(&tokens, item);
        let item: Vec<&str> = tokens[item..at].iter().map(|token| token.text.as_str()).collect();
        // What the fuzzer shares is a room like the others.
        if let ([.., "mod", name, ";"], true) = (&item[..], *mark == TEST) {
            modules.push((*name).to_owned());
        }
    }
    (kept, modules)
}

/// Returns the index after an item that begins at `from`: after its `;` or its braces.
fn end_of_item(tokens: &[Token], from: usize) -> usize {
    let mut open = 0_usize;
    for (at, token) in tokens.iter().enumerate().skip(from) {
        match token.text.as_str() {
            "{" | "(" | "[" => open += 1,
            "}" | ")" | "]" => {
                open = open.saturating_sub(1);
                // The braces of `use a::{b};` are not the end of the item.
                let more = tokens.get(at + 1).is_some_and(|next| next.text == ";");
                if open == 0 && token.text == "}" && !more {
                    return at + 1;
                }
            }
            ";" if open == 0 => return at + 1,
            _ => {}
        }
    }
    tokens.len()
}

/// Returns the paths that a file names, without its test code. `depth` is how many modules deep the file is in the crate.
fn names(text: &str, depth: usize) -> Vec<Named> {
    let (tokens, _) = without_tests(tokens(text));
    let word = |at: usize| tokens.get(at).map_or("", |token: &Token| token.text.as_str());
    let mut names = Vec::new();
    // For each open brace, whether it belongs to a module.
    let mut open = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        match word(at) {
            "{" => open.push(at >= 2 && word(at - 2) == "mod"),
            "}" => drop(open.pop()),
            _ => {}
        }
        let starts = word(at).starts_with(|c: char| c.is_alphabetic() || c == '_') && (at == 0 || word(at - 1) != "::");
        let group = word(at) == "use" && word(at + 1) == "{";
        if !starts || (word(at + 1) != "::" && word(at) != "unsafe" && !group) {
            at += 1;
            continue;
        }
        let mut paths = Vec::new();
        let from = if group { at + 1 } else { at };
        at = tree(&tokens, from, "", &mut paths).max(at + 1);
        let modules = depth + open.iter().filter(|module| **module).count();
        names.extend(paths.into_iter().map(|(line, path)| Named { line, path: resolve(&path, modules) }));
    }
    names
}

/// Reads a path, or a tree of paths as in `a::{b, c::d}`, and adds each full path with its line. Returns the index after it.
fn tree(tokens: &[Token], mut at: usize, prefix: &str, paths: &mut Vec<(usize, String)>) -> usize {
    let mut path = prefix.to_owned();
    let line = tokens.get(at).map_or(0, |token| token.line);
    while let Some(token) = tokens.get(at) {
        if token.text == "{" {
            at += 1;
            while tokens.get(at).is_some_and(|token| token.text != "}") {
                at = tree(tokens, at, &path, paths);
                // The name after `as` is not a path.
                while tokens.get(at).is_some_and(|token| token.text != "," && token.text != "}") {
                    at += 1;
                }
                at += usize::from(tokens.get(at).is_some_and(|token| token.text == ","));
            }
            return at + 1;
        }
        if !token.text.starts_with(|c: char| c.is_alphabetic() || c == '_') {
            break;
        }
        let separator = if path.is_empty() { "" } else { "::" };
        path = format!("{path}{separator}{}", token.text);
        at += 1;
        let again = tokens.get(at).is_some_and(|token| token.text == "::");
        if !again {
            break;
        }
        at += 1;
    }
    if path != prefix {
        paths.push((line, path));
    }
    at
}

/// Resolves `lvm_csi`, and as many `super` as lead to the crate, to `crate`.
fn resolve(path: &str, modules: usize) -> String {
    if let Some(rest) = path.strip_prefix("lvm_csi::") {
        return format!("crate::{rest}");
    }
    let up = path.trim_start_matches("self::").split("::").take_while(|part| *part == "super").count();
    if up > 0 && up >= modules { format!("crate::{path}") } else { path.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(text: &str) -> Vec<String> {
        names(text, 1).into_iter().map(|name| name.path).collect()
    }

    fn wrong(room: &str, text: &str) -> Vec<String> {
        let mut found = Findings::default();
        found.look(room, &format!("{room}/mod.rs"), text);
        found.wrong
    }

    #[test]
    fn a_forbidden_import_is_found_wherever_it_hides() {
        for text in [
            "use crate::lvm::engine::Engine;",
            "use crate::{types::Error, lvm::{metadata::Vg, Engine as E}};",
            "pub(crate) use crate::lvm::engine;",
            "use {crate::lvm::writer::Queue, std::fmt};",
            "fn f(engine: &crate::lvm::Engine) {}",
            "const C: char = '\"'; const Q: &'static str = \"//\"; fn f() { crate::lvm::run() }",
            "fn f<'a>(x: &'a str) -> char { crate::lvm::run(x, r#\"\" \"#, b'\\'') }",
            "mod inner { use super::super::lvm; }",
            "use super::lvm::Engine;",
            "use crate::*;",
            "#[cfg(test)] use std::{fmt}; use crate::lvm::Engine;",
            "#[cfg(test)] fn f() { g() } use crate::lvm::Engine;",
        ] {
            assert_eq!(wrong("volume", text).len(), 1, "{text}: {:?}", wrong("volume", text));
        }
    }

    #[test]
    fn what_is_allowed_or_only_looks_forbidden_is_not_found() {
        for text in [
            "use crate::lvm::{metadata::{Vg, Lv}, command::Command};",
            "use crate::types::Error; use crate::volume::tag;",
            "// use crate::lvm::Engine;\n/* a /* use crate::lvm; */ crate::lvm */",
            "const A: &str = \"crate::lvm \\\" crate::host\"; const B: &str = r##\"\"# crate::lvm\"##;",
            "#[cfg(test)]\nmod tests { use crate::lvm::Engine; fn f() {} }",
            "#[cfg(test)]\n#[rustfmt::skip]\npub(crate) mod testing;\n",
            "mod inner { use super::tag; }",
        ] {
            assert_eq!(wrong("volume", text), Vec::<String>::new(), "{text}");
        }
    }

    #[test]
    fn words_have_their_places() {
        assert_eq!(wrong("node", "fn f() { unsafe { g() } }").len(), 1);
        assert_eq!(wrong("host", "fn f() { unsafe { g() } }").len(), 0);
        assert_eq!(wrong("agent", "use std::process::{Command, Stdio};").len(), 1);
        assert_eq!(wrong("agent", "use std::process::Stdio;").len(), 0);
        assert_eq!(wrong("device", "use libblkid_rs::BlkidProbe;").len(), 1);
        for change in ["std::fs::write(a, b)", "fs::remove_file(a)", "File::create(a)", "use std::fs::{self, OpenOptions}"] {
            assert_eq!(wrong("mount", &format!("{change};")).len(), 1, "{change}");
        }
        assert_eq!(wrong("mount", "use std::fs; fs::read(a); File::open(b);").len(), 0);
        assert_eq!(wrong("controller", "use crate::agent::{Agent, Remote};").len(), 1);
        assert_eq!(wrong("controller", "use crate::machine::Machine;").len(), 1);
        assert_eq!(wrong("controller", "use crate::agent::Agent;").len(), 0);
    }

    #[test]
    fn a_permission_without_use_is_stale() {
        let mut found = Findings::default();
        assert!(found.stale().iter().any(|text| text.contains("\"host\"") && text.contains("\"lvm\"")));
        found.look("lvm", "lvm/engine.rs", "use crate::host::run;");
        assert!(!found.stale().iter().any(|text| text.contains("\"host\"") && text.contains("\"lvm\"")));
    }

    #[test]
    fn a_circle_of_imports_is_found_whatever_leads_to_it() {
        let found =
            |files: &[(&str, &str)]| circle(&imports(files.iter().map(|(file, text)| ((*file).to_owned(), (*text).to_owned()))));
        let vg = ("vg.rs", "use crate::{lab, tool};");
        let (lab, tool) = (("lab.rs", "use crate::tool::run;"), ("tool.rs", "use std::fs;"));
        assert_eq!(found(&[("lib.rs", "pub use vg::Vg; mod vg;"), vg, lab, tool]), [""; 0]);
        for back in ["use crate::vg::Vg;", "use crate::{error, vg::Vg};", "use super::vg;", "fn f() { crate::vg::lvm() }"] {
            assert_eq!(found(&[vg, lab, ("tool.rs", back)]), ["lab", "tool", "vg", "lab"], "{back}");
        }
        assert_eq!(found(&[vg, ("lab.rs", "use crate::vg;"), tool, ("demo.rs", "use crate::lab;")]), ["lab", "vg", "lab"]);
        assert_eq!(found(&[vg, ("lab/disk.rs", "use super::super::vg;"), tool]), ["lab", "vg", "lab"]);
        assert_eq!(found(&[vg, lab, ("tool.rs", "#[cfg(test)] mod tests { use crate::vg; }")]), [""; 0]);
    }

    #[test]
    fn lines_and_files_are_reported() {
        let text = "/* one\n two */\nuse crate::{\n    a,\n    b::c,\n};\n";
        let found: Vec<(usize, String)> = names(text, 1).into_iter().map(|name| (name.line, name.path)).collect();
        assert_eq!(found, [(4, "crate::a".to_owned()), (5, "crate::b::c".to_owned())]);
        assert_eq!(paths("r#type::x(); a.b::<C>();"), ["type::x", "b"]);
        assert_eq!(test_files("device/mod.rs", "#[cfg(test)]\npub(crate) mod fake;\nmod dm;"), ["device/fake"]);
        assert_eq!(test_files("lib.rs", "pub mod node;\n#[cfg(test)]\nmod simulation;"), ["simulation"]);
        assert_eq!(test_files("lvm/engine.rs", "#[cfg(test)]\nmod tests;"), ["lvm/engine/tests"]);
        assert_eq!((depth("main.rs"), depth("lvm/mod.rs"), depth("lvm/metadata/text.rs")), (0, 1, 3));
    }
}
