//! Images whose files are objects of a store, read by the caller's `ReadAt` and resolver.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use diskimage::io::{MemDirectory, MemFile, ReadAt};
use diskimage::{
    Converter, Error, Format, Image, OpenOptions, Options, ReferencePolicy, ReferenceProblem, Result,
};

use crate::{content, disk, raw_image};

const PART_LEN: usize = 10_000;

/// An object in parts, as uploads in parts leave it. It counts the requests.
#[derive(Default)]
struct Object {
    parts: Vec<Vec<u8>>,
    size_requests: AtomicU32,
    read_requests: AtomicU32,
}

impl ReadAt for Object {
    fn size(&self) -> io::Result<u64> {
        self.size_requests.fetch_add(1, Ordering::Relaxed);
        Ok(self.parts.iter().map(|part| part.len() as u64).sum())
    }

    /// Reads from one part, hence often less than was asked for.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.read_requests.fetch_add(1, Ordering::Relaxed);
        let (index, within) = (offset as usize / PART_LEN, offset as usize % PART_LEN);
        let rest = self.parts.get(index).and_then(|part| part.get(within..)).unwrap_or_default();
        let len = rest.len().min(buf.len());
        buf[..len].copy_from_slice(&rest[..len]);
        Ok(len)
    }
}

/// Objects by key. It keeps the keys that were asked for.
#[derive(Clone, Default)]
struct Store {
    objects: HashMap<String, Arc<Object>>,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Store {
    fn put(&mut self, key: &str, bytes: &[u8]) {
        let parts = bytes.chunks(PART_LEN).map(<[u8]>::to_vec).collect();
        self.objects.insert(key.to_owned(), Arc::new(Object { parts, ..Object::default() }));
    }

    fn get(&self, key: &str) -> io::Result<Arc<dyn ReadAt>> {
        self.asked.lock().unwrap().push(key.to_owned());
        match self.objects.get(key) {
            Some(object) => Ok(object.clone()),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    /// Opens the object `key`, with the referenced objects.
    fn open(&self, key: &str, policy: ReferencePolicy) -> Result<Image> {
        let store = self.clone();
        let source: Arc<dyn ReadAt> = self.objects[key].clone();
        OpenOptions::new()
            .reference_policy(policy)
            .resolver(move |request| store.get(&request.path.to_string_lossy()))
            .open_source(source)
    }

    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut *self.asked.lock().unwrap())
    }

    fn size_requests(&self, key: &str) -> u32 {
        self.objects[key].size_requests.load(Ordering::Relaxed)
    }
}

fn options(list: &str) -> Options {
    let mut options = Options::new();
    options.add_list(list);
    options
}

/// Three images of a chain, and the guest bytes of the top.
fn chain() -> (Store, Vec<u8>) {
    let mut guest = disk();
    let base = Arc::new(MemFile::new());
    Converter::new(Format::QCOW2).compress(true).convert_to(&raw_image(&guest), base.clone()).unwrap();
    let mut store = Store::default();
    store.put("base", &base.to_vec());
    for (name, below, changed) in [("middle", "base", 100_000..200_000), ("top", "middle", 150_000..160_000)] {
        guest[changed].fill(name.len() as u8);
        let backing = store.open(below, ReferencePolicy::Beside).unwrap();
        let out = Arc::new(MemFile::new());
        let converter = Converter::new(Format::QCOW2).options(options("backing_fmt=qcow2")).backing(backing, below);
        converter.convert_to(&raw_image(&guest), out.clone()).unwrap();
        store.put(name, &out.to_vec());
    }
    let objects = std::mem::take(&mut store.objects);
    let fresh = |(key, object): (String, Arc<Object>)| (key, object.parts.concat());
    for (key, bytes) in objects.into_iter().map(fresh) {
        store.put(&key, &bytes);
    }
    store.asked();
    (store, guest)
}

#[test]
fn a_backing_chain_is_read_from_the_store() {
    let (store, guest) = chain();
    let image = store.open("top", ReferencePolicy::Beside).unwrap();
    assert_eq!(image.layer_count(), 3);
    assert_eq!(store.asked(), ["middle", "base"]);
    assert!(content(&image).unwrap() == guest);
    for key in ["top", "middle", "base"] {
        assert_eq!(store.size_requests(key), 1, "{key}");
        assert!(store.objects[key].read_requests.load(Ordering::Relaxed) > 0, "{key}");
    }
    assert!(store.asked().is_empty(), "reading opens nothing");
    let flat = Arc::new(MemFile::new());
    Converter::new(Format::RAW).convert_to(&image, flat.clone()).unwrap();
    assert!(flat.to_vec() == guest);
}

#[test]
fn the_default_policy_refuses_before_the_resolver_is_asked() {
    let (store, _) = chain();
    for key in ["middle", "missing"] {
        // The same whether the object exists or not.
        let mut store = store.clone();
        store.objects.remove(if key == "missing" { "middle" } else { "" });
        let error = store.open("top", ReferencePolicy::Deny).unwrap_err();
        let Error::Reference { name, problem: ReferenceProblem::NotAllowed, .. } = error.root() else {
            panic!("{error}");
        };
        assert_eq!(name.to_text(), "middle");
        assert!(store.asked().is_empty());
    }
}

#[test]
fn names_out_of_the_directory_are_refused_before_the_resolver_is_asked() {
    let mut store = Store::default();
    let base = raw_image(&disk());
    let out = Arc::new(MemFile::new());
    let converter = Converter::new(Format::QCOW2).options(options("backing_fmt=raw")).backing(base, "../secret");
    converter.convert_to(&raw_image(&disk()), out.clone()).unwrap();
    store.put("top", &out.to_vec());
    let error = store.open("top", ReferencePolicy::Beside).unwrap_err();
    assert!(matches!(error.root(), Error::Reference { problem: ReferenceProblem::NotBeside, .. }), "{error}");
    assert!(store.asked().is_empty());
    store.put("../secret", &disk());
    assert!(content(&store.open("top", ReferencePolicy::Any).unwrap()).unwrap() == disk());
    assert_eq!(store.asked(), ["../secret"]);
}

#[test]
fn a_missing_object_is_an_error_with_its_name() {
    let (mut store, _) = chain();
    store.objects.remove("base");
    let error = store.open("top", ReferencePolicy::Beside).unwrap_err();
    assert!(matches!(error.root(), Error::Io { cause, .. } if cause.kind() == io::ErrorKind::NotFound), "{error}");
    assert!(error.to_string().contains("base"), "{error}");
}

/// Creates a VMDK of several files in memory and moves them into a store.
fn split_vmdk(subformat: &str, guest: &[u8]) -> (Store, Vec<String>) {
    let directory = MemDirectory::new();
    let converter = Converter::new(Format::VMDK).options(options(&format!("subformat={subformat}")));
    converter.convert_into(&raw_image(guest), &directory, "disk.vmdk").unwrap();
    let mut store = Store::default();
    let names: Vec<_> = directory.names().into_iter().map(|name| name.into_string().unwrap()).collect();
    for name in &names {
        store.put(name, &directory.file(name).unwrap().to_vec());
    }
    (store, names)
}

#[test]
fn a_split_vmdk_is_written_to_memory_and_read_from_the_store() {
    for (subformat, extent) in [
        ("twoGbMaxExtentSparse", "disk-s001.vmdk"),
        ("twoGbMaxExtentFlat", "disk-f001.vmdk"),
        ("monolithicFlat", "disk-flat.vmdk"),
    ] {
        let guest = disk();
        let (store, names) = split_vmdk(subformat, &guest);
        assert_eq!(names, [extent, "disk.vmdk"]);
        let image = store.open("disk.vmdk", ReferencePolicy::Beside).unwrap();
        assert_eq!(store.asked(), [extent], "{subformat}");
        assert!(content(&image).unwrap() == guest, "{subformat}");
        for name in &names {
            assert_eq!(store.size_requests(name), 1, "{subformat}: {name}");
        }
        let error = store.open("disk.vmdk", ReferencePolicy::Deny).unwrap_err();
        assert!(matches!(error.root(), Error::Reference { problem: ReferenceProblem::NotAllowed, .. }), "{error}");
        assert!(store.asked().is_empty());
    }
}

#[test]
fn properties_are_found_without_the_referenced_objects() {
    let (store, _) = chain();
    let inspection = OpenOptions::new().inspect_source(store.objects["top"].clone()).unwrap();
    assert_eq!(inspection.format, Format::QCOW2);
    assert_eq!(inspection.info.backing.unwrap().name.to_text(), "middle");
    assert_eq!(store.size_requests("top"), 1);
    let checked = OpenOptions::new().check_source(store.objects["top"].clone()).unwrap();
    assert_eq!((checked.corruptions, checked.leaks), (0, 0));
}
