//! Directories for tests that need real files.

use std::fs;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};

/// A new directory that is removed with its content.
pub struct TempDir(PathBuf);

impl TempDir {
    pub fn new() -> TempDir {
        // Cargo sets this for integration tests only.
        match option_env!("CARGO_TARGET_TMPDIR") {
            Some(parent) => TempDir::under(Path::new(parent)),
            // `temp_dir` panics there.
            None if cfg!(target_os = "wasi") => TempDir::under(Path::new("/tmp")),
            None => TempDir::under(&std::env::temp_dir()),
        }
    }

    pub fn under(parent: &Path) -> TempDir {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        // WASI has no processes.
        let process = if cfg!(target_os = "wasi") { 0 } else { process::id() };
        let path = parent.join(format!("diskimage-{process}-{number}"));
        fs::create_dir_all(&path).unwrap();
        TempDir(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Writes a file.
    pub fn file(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.join(name);
        fs::write(&path, content).unwrap();
        path
    }

    /// The names of its entries, hidden ones too, sorted.
    pub fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.0).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
