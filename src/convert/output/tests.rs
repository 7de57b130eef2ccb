//! The target directory before, during and after a conversion.

#[cfg(unix)]
use std::{
    fs::Permissions,
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    process::Command,
};

use super::*;
#[cfg(unix)]
use crate::io::FileSource;
use crate::testing::TempDir;

fn rules() -> Rules {
    Rules {
        in_use: Vec::new(),
        sync: true,
        cache: CacheMode::default(),
        clobber: true,
        in_place: false,
        existing: false,
        holes: true,
    }
}

fn create(target: impl AsRef<Path>) -> Result<Output> {
    Output::create(target.as_ref(), rules())
}

fn create_in_place(target: impl AsRef<Path>) -> Result<Output> {
    Output::create(target.as_ref(), Rules { in_place: true, ..rules() })
}

fn write(output: &Output) {
    output.file().write_all_at(b"new", 0).unwrap();
}

#[cfg(unix)]
fn mode(path: impl AsRef<Path>) -> u32 {
    fs::symlink_metadata(path).unwrap().mode() & 0o7777
}

/// Checks that `target` is refused with these words, and that nothing changes in the directory.
#[cfg(unix)]
fn refused(dir: &TempDir, target: impl AsRef<Path>, words: &str) {
    let before = dir.names();
    let error = create(&target).err().unwrap();
    assert_eq!(error.kind().as_str(), "usage", "{error}");
    assert!(error.to_string().ends_with(words), "{error}");
    assert_eq!(error.path(), Some(target.as_ref()));
    assert_eq!(dir.names(), before);
}

/// The number of names that a new file has before it is complete: none where the file system has files without a name.
fn visible() -> usize {
    let is_linux = cfg!(any(target_os = "linux", target_os = "android"));
    usize::from(!is_linux || FileTarget::create_unnamed(&std::env::temp_dir(), None, None).is_err())
}

#[cfg(unix)]
#[test]
fn the_new_file_is_never_more_readable_than_the_old_one() {
    for bits in [0o600, 0o640, 0o444] {
        let dir = TempDir::new();
        let old = dir.file("old", b"old");
        fs::set_permissions(&old, Permissions::from_mode(bits)).unwrap();
        let output = create(&old).unwrap();
        if visible() > 0 {
            let names = dir.names();
            let [hidden, name] = &names[..] else { panic!("{names:?}") };
            assert!(hidden.starts_with(".old.") && hidden.ends_with(".tmp") && name == "old", "{names:?}");
            assert_eq!(mode(dir.join(hidden)), bits);
        }
        write(&output);
        assert_eq!(fs::read(&old).unwrap(), b"old");
        output.commit().unwrap();
        assert_eq!((fs::read(&old).unwrap(), mode(&old)), (b"new".to_vec(), bits));
        assert_eq!(dir.names(), ["old"]);
    }
}

#[cfg(unix)]
#[test]
fn a_new_file_has_the_usual_permissions() {
    let dir = TempDir::new();
    let usual = mode(dir.file("other", b""));
    create(dir.join("new")).unwrap().commit().unwrap();
    assert_eq!(mode(dir.join("new")), usual);
}

#[test]
fn a_dropped_output_leaves_no_files() {
    let dir = TempDir::new();
    let old = dir.file("old", b"old");
    for target in [dir.join("new"), old.clone()] {
        let output = create(&target).unwrap();
        write(&output);
        assert_eq!(dir.names().len(), 1 + visible());
        drop(output);
        assert_eq!(dir.names(), ["old"]);
    }
    // Neither does what cannot be committed.
    let output = create(&old).unwrap();
    let file = output.file();
    assert_eq!(output.commit().unwrap_err().kind().as_str(), "usage");
    drop(file);
    assert_eq!((dir.names(), fs::read(&old).unwrap()), (vec!["old".to_owned()], b"old".to_vec()));
}

#[cfg(unix)]
#[test]
fn a_link_is_kept_and_its_target_is_replaced() {
    let dir = TempDir::new();
    fs::create_dir(dir.join("sub")).unwrap();
    dir.file("sub/old", b"old");
    symlink("sub/old", dir.join("link")).unwrap();
    let output = create(dir.join("link")).unwrap();
    let counts = || (dir.names().len(), fs::read_dir(dir.join("sub")).unwrap().count());
    assert_eq!(counts(), (2, 1 + visible()));
    write(&output);
    output.commit().unwrap();
    assert_eq!(fs::read_link(dir.join("link")).unwrap(), Path::new("sub/old"));
    assert_eq!(fs::read(dir.join("sub/old")).unwrap(), b"new");
    assert_eq!(counts(), (2, 1));
}

#[cfg(unix)]
#[test]
fn targets_that_cannot_be_replaced_are_refused() {
    let dir = TempDir::new();
    symlink("none/new", dir.join("dangling")).unwrap();
    symlink("loop", dir.join("loop")).unwrap();
    symlink("new/", dir.join("directory")).unwrap();
    fs::create_dir(dir.join("sub")).unwrap();
    assert!(Command::new("mkfifo").arg(dir.join("fifo")).status().unwrap().success());
    refused(&dir, dir.join("directory"), "ends with a path separator, expected a file");
    refused(&dir, dir.join("new/"), "ends with a path separator, expected a file");
    refused(&dir, dir.join("sub/"), "ends with a path separator, expected a file");
    refused(&dir, dir.path(), "neither a regular file nor a block device");
    refused(&dir, dir.join("sub/.."), "neither a regular file nor a block device");
    refused(&dir, dir.join("fifo"), "neither a regular file nor a block device");
    refused(&dir, "", "has no file name");
    let before = dir.names();
    for name in ["none/new", "dangling", "loop"] {
        assert_eq!(create(dir.join(name)).err().unwrap().kind().as_str(), "io", "{name}");
    }
    assert_eq!(dir.names(), before);
}

#[cfg(unix)]
#[test]
fn what_a_dangling_link_points_to_is_created() {
    for in_place in [false, true] {
        for clobber in [false, true] {
            let dir = TempDir::new();
            fs::create_dir(dir.join("sub")).unwrap();
            symlink("sub/second", dir.join("first")).unwrap();
            symlink("../new", dir.join("sub/second")).unwrap();
            let output = Output::create(&dir.join("first"), Rules { clobber, in_place, ..rules() }).unwrap();
            assert_eq!(output.image_name(), "new");
            write(&output);
            drop(output.add(OsStr::new("part")).unwrap());
            output.commit().unwrap();
            assert_eq!(dir.names(), ["first", "new", "part", "sub"]);
            assert_eq!(fs::read(dir.join("first")).unwrap(), b"new");
            assert!(fs::symlink_metadata(dir.join("first")).unwrap().is_symlink());
        }
    }
}

#[cfg(unix)]
#[test]
fn a_file_in_use_is_no_target_by_any_name() {
    let dir = TempDir::new();
    let source = dir.file("source", b"source");
    fs::hard_link(&source, dir.join("second")).unwrap();
    symlink("source", dir.join("link")).unwrap();
    let in_use = [FileSource::open(&source).unwrap().identity().unwrap()];
    for name in ["source", "second", "link"] {
        let error = Output::create(&dir.join(name), Rules { in_use: in_use.to_vec(), ..rules() }).err().unwrap();
        assert!(error.to_string().ends_with("is also an input file"), "{error}");
    }
    assert_eq!(dir.names(), ["link", "second", "source"]);
}

#[test]
fn without_clobber_nothing_is_replaced() {
    let dir = TempDir::new();
    let there = dir.file("there", b"old");
    let create = |path: &Path| Output::create(path, Rules { clobber: false, ..rules() });
    let error = create(&there).err().unwrap();
    assert!(error.to_string().ends_with("the target exists"), "{error}");
    let create = |name| create(&dir.join(name)).unwrap();
    let (late, free) = (create("late"), create("free"));
    write(&late);
    write(&free);
    dir.file("late", b"meanwhile");
    let error = late.commit().unwrap_err();
    let exists = |cause: &io::Error| cause.kind() == io::ErrorKind::AlreadyExists;
    assert!(matches!(error.root(), Error::Io { cause, .. } if exists(cause)), "{error}");
    free.commit().unwrap();
    assert_eq!(fs::read(dir.join("late")).unwrap(), b"meanwhile");
    assert_eq!(fs::read(dir.join("free")).unwrap(), b"new");
    assert_eq!(dir.names(), ["free", "late", "there"]);
}

#[test]
fn the_longest_name_there_is() {
    let dir = TempDir::new();
    for name in ["n".repeat(255), "ü".repeat(127)] {
        for sync in [true, false] {
            let output = Output::create(&dir.join(&name), Rules { sync, ..rules() }).unwrap();
            write(&output);
            output.commit().unwrap();
            assert_eq!(fs::read(dir.join(&name)).unwrap(), b"new");
        }
    }
    assert_eq!(dir.names().len(), 2);
    // wine takes such a name for that of a file that does not exist.
    #[cfg(unix)]
    assert_eq!(create(dir.join(&"n".repeat(256))).err().unwrap().kind().as_str(), "io");
}

/// The names of the files of a set: the target, which comes last, is the first here.
const SET: [&str; 4] = ["disk", "disk-s001", "disk-s002", "disk-s003"];

/// All entries of a directory: name, type, permissions and content.
fn everything(dir: &TempDir) -> Vec<(String, (fs::FileType, fs::Permissions), Vec<u8>)> {
    let entry = |name: String| {
        let content = fs::read_link(dir.join(&name)).map(|to| to.into_os_string().into_encoded_bytes());
        let content = content.or_else(|_| fs::read(dir.join(&name))).unwrap_or_default();
        let metadata = fs::symlink_metadata(dir.join(&name)).unwrap();
        (name, (metadata.file_type(), metadata.permissions()), content)
    };
    dir.names().into_iter().map(entry).collect()
}

/// Prepares the set: each file holds its own name.
fn create_set(dir: &TempDir, clobber: bool) -> Result<Output> {
    let output = Output::create(&dir.join(SET[0]), Rules { clobber, ..rules() })?;
    output.file().write_all_at(SET[0].as_bytes(), 0).unwrap();
    for name in &SET[1..] {
        output.add(OsStr::new(name))?.write_all_at(name.as_bytes(), 0).unwrap();
    }
    Ok(output)
}

#[test]
fn a_set_replaces_existing_files_of_the_same_names() {
    // How many of the old files there are.
    for old in 0..=SET.len() {
        for clobber in [true, false] {
            let dir = TempDir::new();
            dir.file("disk-s004", b"of nobody");
            SET[..old].iter().for_each(|name| drop(dir.file(name, b"old")));
            let before = everything(&dir);
            let output = create_set(&dir, clobber);
            if old > 0 && !clobber {
                assert!(output.err().unwrap().to_string().ends_with("the target exists"));
                assert_eq!(everything(&dir), before);
                continue;
            }
            assert_eq!(dir.names().len(), 1 + SET.len() * visible() + old);
            output.unwrap().commit().unwrap();
            assert_eq!(dir.names(), [&SET[..], &["disk-s004"]].concat());
            SET.iter().for_each(|name| assert_eq!(fs::read(dir.join(name)).unwrap(), name.as_bytes()));
            assert_eq!(fs::read(dir.join("disk-s004")).unwrap(), b"of nobody");
        }
    }
}

#[cfg(unix)]
#[test]
fn when_one_file_cannot_have_its_name_all_is_as_before() {
    type Obstacle = fn(&Path);
    let obstacles: [(Obstacle, bool); 3] = [
        (|path| fs::create_dir(path).unwrap(), true),
        (|path| symlink("disk-other", path).unwrap(), false),
        (|path| fs::write(path, b"meanwhile").unwrap(), false),
    ];
    for (kind, (obstacle, for_target)) in obstacles.into_iter().enumerate() {
        for blocked in SET {
            // With clobber, a file that appears is replaced, and so is anything but a directory at the target.
            for clobber in if kind == 2 { vec![false] } else { vec![true, false] } {
                if blocked == SET[0] && clobber && !for_target {
                    continue;
                }
                let dir = TempDir::new();
                // With clobber, some are there already.
                let old = if clobber { &SET[..3] } else { &[] };
                old.iter().for_each(|name| drop(dir.file(name, name.to_uppercase().as_bytes())));
                let output = create_set(&dir, clobber).unwrap();
                let _ = fs::remove_file(dir.join(blocked));
                obstacle(&dir.join(blocked));
                let mut before = everything(&dir);
                before.retain(|(name, ..)| !name.starts_with('.'));
                let error = output.commit().unwrap_err();
                assert_eq!(error.path(), Some(&*dir.join(blocked)), "{error}");
                assert_eq!(everything(&dir), before, "{blocked}, {error}");
            }
        }
    }
}

#[cfg(unix)]
#[test]
fn a_file_written_in_place_stays_the_same_file() {
    let dir = TempDir::new();
    let old = dir.file("old", &[b'x'; 100]);
    fs::set_permissions(&old, Permissions::from_mode(0o604)).unwrap();
    fs::hard_link(&old, dir.join("second")).unwrap();
    symlink("old", dir.join("link")).unwrap();
    let inode = fs::metadata(&old).unwrap().ino();
    for name in ["old", "second", "link"] {
        let output = create_in_place(dir.join(name)).unwrap();
        assert_eq!(dir.names(), ["link", "old", "second"]);
        output.file().write_all_at(name.as_bytes(), 0).unwrap();
        output.commit().unwrap();
        let metadata = fs::metadata(&old).unwrap();
        assert_eq!((metadata.ino(), metadata.nlink(), mode(&old)), (inode, 2, 0o604));
        assert_eq!(fs::read(&old).unwrap(), name.as_bytes());
    }
    // Without holes nothing is left of the old content either.
    let output = Output::create(&old, Rules { in_place: true, holes: false, ..rules() }).unwrap();
    output.file().write_all_at(b"new", 0).unwrap();
    output.commit().unwrap();
    assert_eq!(fs::read(&old).unwrap(), b"new");
    // An image may be empty.
    create_in_place(&old).unwrap().commit().unwrap();
    assert_eq!(fs::read(&old).unwrap(), b"");
    assert_eq!(dir.names(), ["link", "old", "second"]);
    // What does not exist is created as usual.
    let output = create_in_place(dir.join("new")).unwrap();
    write(&output);
    assert_eq!(dir.names().len(), 4);
    output.commit().unwrap();
    assert_eq!(fs::read(dir.join("new")).unwrap(), b"new");
}

#[test]
fn a_file_written_in_place_is_empty_after_a_failure() {
    type Write = fn(&dyn WriteAt) -> io::Result<()>;
    let writes: [Write; 4] = [
        |file| file.write_all_at(b"part", 10),
        |file| file.set_len(10),
        |file| file.zero_range(1..10),
        |file| file.allocate(1..10),
    ];
    let dir = TempDir::new();
    let old = dir.file("old", b"precious");
    // Before the first write nothing is lost.
    drop(create_in_place(&old).unwrap());
    let output = create_in_place(&old).unwrap();
    output.file().sync().unwrap();
    drop(output);
    assert_eq!(fs::read(&old).unwrap(), b"precious");
    for write in writes {
        dir.file("old", b"precious");
        let output = create_in_place(&old).unwrap();
        write(&*output.file()).unwrap();
        assert!(!fs::read(&old).unwrap().starts_with(b"p"));
        drop(output);
        assert_eq!((fs::read(&old).unwrap(), dir.names()), (b"".to_vec(), vec!["old".to_owned()]));
    }
    // The same if it cannot be committed.
    let output = create_in_place(&old).unwrap();
    let file = output.file();
    file.write_all_at(b"part", 0).unwrap();
    assert_eq!(output.commit().unwrap_err().kind().as_str(), "usage");
    assert_eq!(fs::read(&old).unwrap(), b"");
}

#[cfg(unix)]
#[test]
fn of_a_set_existing_files_are_written_in_place() {
    for old in 0..=SET.len() {
        let dir = TempDir::new();
        SET[..old].iter().for_each(|name| drop(dir.file(name, b"old and longer")));
        let inodes = || SET[..old].iter().map(|name| fs::metadata(dir.join(name)).unwrap().ino()).collect::<Vec<_>>();
        let before = inodes();
        let fill = |name: &str| -> Output {
            let output = create_in_place(dir.join(SET[0])).unwrap();
            output.file().write_all_at(SET[0].as_bytes(), 0).unwrap();
            SET[1..]
                .iter()
                .for_each(|name| drop(output.add(OsStr::new(name)).unwrap().write_all_at(name.as_bytes(), 0)));
            // Without an existing target, all files have their names from the start.
            let hidden = if old == 0 { 0 } else { (SET.len() - old) * visible() };
            assert_eq!(dir.names().iter().filter(|name| name.starts_with('.')).count(), hidden, "{name}");
            output
        };
        fill("committed").commit().unwrap();
        SET.iter().for_each(|name| assert_eq!(fs::read(dir.join(name)).unwrap(), name.as_bytes()));
        assert_eq!((inodes(), dir.names()), (before, SET.map(str::to_owned).to_vec()));
        // A failure leaves no part of an image, and files that the image does not have yet are not left either.
        SET[old..].iter().for_each(|name| fs::remove_file(dir.join(name)).unwrap());
        drop(fill("dropped"));
        assert_eq!(dir.names(), SET[..old]);
        SET[..old].iter().for_each(|name| assert_eq!(fs::read(dir.join(name)).unwrap(), b""));
        if (1..SET.len()).contains(&old) {
            let output = fill("blocked");
            fs::create_dir(dir.join(SET[old])).unwrap();
            assert_eq!(output.commit().unwrap_err().path(), Some(&*dir.join(SET[old])));
            SET[..old].iter().for_each(|name| assert_eq!(fs::read(dir.join(name)).unwrap(), b""));
        }
    }
}

#[cfg(unix)]
#[test]
fn a_file_in_use_is_not_written_in_place() {
    let dir = TempDir::new();
    let source = dir.file("source", b"source");
    fs::hard_link(&source, dir.join("part")).unwrap();
    let in_use = vec![FileSource::open(&source).unwrap().identity().unwrap()];
    let rules = || Rules { in_use: in_use.clone(), in_place: true, ..rules() };
    assert!(Output::create(&source, rules()).is_err());
    let output = Output::create(&dir.join("new"), rules()).unwrap();
    assert!(output.add(OsStr::new("part")).is_err());
    drop(output);
    assert_eq!(fs::read(&source).unwrap(), b"source");
    // A file that is exchanged after the check.
    let status = FileStatus::from_path(&source).unwrap().unwrap();
    fs::rename(dir.file("other", b"other"), &source).unwrap();
    assert!(InPlace::open(&source, &status, &rules()).is_err());
    assert_eq!(fs::read(&source).unwrap(), b"other");
}

#[test]
fn where_there_are_no_links_the_old_file_is_moved() {
    type Link = fn(&Path, &Path) -> io::Result<()>;
    let links: [Link; 2] = [|from, to| fs::hard_link(from, to), |_, _| Err(io::ErrorKind::Unsupported.into())];
    for (link, has_name) in links.into_iter().zip([true, false]) {
        let dir = TempDir::new();
        let path = dir.file("old", b"old");
        let old = Temporary::keep(&path, link).unwrap();
        assert_eq!(path.exists(), has_name);
        old.put_back(&path).unwrap();
        assert_eq!((dir.names(), fs::read(&path).unwrap()), (vec!["old".to_owned()], b"old".to_vec()));
        // The same when the new file has the name.
        let old = Temporary::keep(&path, link).unwrap();
        fs::rename(dir.file("new", b"new"), &path).unwrap();
        Placed { path: path.clone(), old: Some(old) }.take_back().unwrap();
        assert_eq!((dir.names(), fs::read(&path).unwrap()), (vec!["old".to_owned()], b"old".to_vec()));
        // The same when the new file is gone before it has the name.
        let new = Temporary::create(&dir.join("gone"), None, None).unwrap().1;
        let names = dir.names();
        let hidden = names.iter().find(|name| name.starts_with(".gone"));
        assert_eq!(hidden.is_some(), visible() > 0);
        hidden.into_iter().for_each(|name| fs::remove_file(dir.join(name)).unwrap());
        assert!(Placed::new(&path, new, Some(Temporary::keep(&path, link).unwrap()), true).is_err());
        assert_eq!((dir.names(), fs::read(&path).unwrap()), (vec!["old".to_owned()], b"old".to_vec()));
        drop(Temporary::keep(&path, link).unwrap());
        assert_eq!(dir.names().len(), usize::from(has_name));
    }
    // A file that cannot be restored is kept, and the error has its name.
    let dir = TempDir::new();
    let path = dir.file("old", b"old");
    let old = Temporary::keep(&path, links[1]).unwrap();
    fs::create_dir(&path).unwrap();
    let error = old.put_back(&path).unwrap_err().to_string();
    let names = dir.names();
    assert!(error.contains(&names[0]) && fs::read(dir.join(&names[0])).unwrap() == b"old", "{error}, {names:?}");
}

#[test]
fn nothing_is_left_of_the_trial_before_the_conversion() {
    let dir = TempDir::new();
    let old = dir.file("old", b"old");
    for target in [dir.join("new"), old] {
        let before = dir.names();
        let (file, temporary) =
            Temporary::create(&target, FileStatus::from_path(&target).unwrap().as_ref(), None).unwrap();
        assert_eq!(dir.names().len(), before.len() + visible());
        drop(file);
        drop(temporary);
        assert_eq!(dir.names(), before);
    }
}

#[cfg(unix)]
#[test]
fn a_part_is_refused_for_its_name() {
    let dir = TempDir::new();
    let source = dir.file("source", b"source");
    fs::hard_link(&source, dir.join("second")).unwrap();
    symlink("nothing", dir.join("link")).unwrap();
    fs::create_dir(dir.join("sub")).unwrap();
    dir.file("there", b"there");
    let in_use = [FileSource::open(&source).unwrap().identity().unwrap()];
    let output =
        |clobber| Output::create(&dir.join("disk"), Rules { in_use: in_use.to_vec(), clobber, ..rules() }).unwrap();
    let (clobber, careful) = (output(true), output(false));
    let part = clobber.add(OsStr::new("part")).unwrap();
    let before = everything(&dir);
    let refused = |output: &Output, name: &str, words: &str| {
        let error = output.add(OsStr::new(name)).unwrap_err();
        assert_eq!(error.kind().as_str(), "usage", "{error}");
        assert!(error.to_string().ends_with(words), "{name}: {error}");
        error.path().unwrap().file_name().unwrap().to_owned()
    };
    for output in [&clobber, &careful] {
        for name in ["source", "second"] {
            assert_eq!(refused(output, name, "the existing one is an input file"), name);
        }
        for name in ["link", "sub"] {
            assert_eq!(refused(output, name, "the existing one is not a regular file"), name);
        }
        for name in ["", ".", "..", "/", "sub/part", "part/", "part/.", "/part"] {
            assert_eq!(refused(output, name, &format!("not a plain file name: '{name}'")), "disk");
        }
        assert_eq!(refused(output, "disk", "two files of the new image have this name"), "disk");
    }
    assert_eq!(refused(&clobber, "part", "two files of the new image have this name"), "part");
    assert_eq!(refused(&careful, "there", "exists already"), "there");
    assert_eq!(everything(&dir), before);
    // A part that is still in use is not committed, and a dropped one leaves nothing.
    assert_eq!(clobber.commit().unwrap_err().kind().as_str(), "usage");
    drop((part, careful));
    assert_eq!(dir.names(), ["link", "second", "source", "sub", "there"]);
}

#[test]
fn a_set_that_is_dropped_leaves_nothing() {
    let dir = TempDir::new();
    SET[..2].iter().for_each(|name| drop(dir.file(name, b"old")));
    let before = everything(&dir);
    drop(create_set(&dir, true).unwrap());
    assert_eq!(everything(&dir), before);
}

#[cfg(unix)]
#[test]
fn a_part_is_beside_the_link_target_and_not_more_readable() {
    let dir = TempDir::new();
    fs::create_dir(dir.join("sub")).unwrap();
    symlink("sub/old", dir.join("link")).unwrap();
    // The bits of the old target, of the old part, where there is one, and of the new part.
    for (target, part, expected) in [(0o600, None, 0o600), (0o644, Some(0o600), 0o600), (0o640, Some(0o604), 0o600)] {
        for (name, bits) in [("sub/old", Some(target)), ("sub/part", part)] {
            let _ = fs::remove_file(dir.join(name));
            if let Some(bits) = bits {
                fs::set_permissions(dir.file(name, b"old"), Permissions::from_mode(bits)).unwrap();
            }
        }
        let output = create(dir.join("link")).unwrap();
        assert_eq!(output.image_name(), "old");
        drop(output.add(OsStr::new("part")).unwrap());
        output.commit().unwrap();
        assert_eq!(mode(dir.join("sub/part")), expected);
        assert_eq!((dir.names().len(), fs::read_dir(dir.join("sub")).unwrap().count()), (2, 2));
    }
}
