//! Requests at the same time.

use std::io;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use diskimage::io::{MemFile, ReadAt, WriteAt};
use diskimage::{Converter, Format, OpenOptions};

/// Storage whose next write after [`Closed`](GateState::Closed) waits for [`Open`](GateState::Open).
#[derive(Default)]
struct Gate {
    file: MemFile,
    state: Mutex<GateState>,
    changed: Condvar,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum GateState {
    #[default]
    Open,
    Closed,
    /// A write waits.
    Waiting,
}

impl Gate {
    fn set(&self, state: GateState) {
        *self.state.lock().unwrap() = state;
        self.changed.notify_all();
    }

    /// Waits until a write waits.
    fn wait(&self) {
        drop(self.changed.wait_while(self.state.lock().unwrap(), |state| *state != GateState::Waiting).unwrap());
    }
}

impl ReadAt for Gate {
    fn size(&self) -> io::Result<u64> {
        self.file.size()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(buf, offset)
    }
}

impl WriteAt for Gate {
    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        let mut state = self.state.lock().unwrap();
        if *state == GateState::Closed {
            *state = GateState::Waiting;
            self.changed.notify_all();
            state = self.changed.wait_while(state, |state| *state != GateState::Open).unwrap();
        }
        drop(state);
        self.file.write_all_at(buf, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}

/// Two requests that allocate the same block at the same time would each have a block of their own, and one would be lost.
#[test]
fn requests_for_one_block_wait_for_each_other() {
    const BLOCK: u64 = 64 << 10;
    let request = |first: u64, second: u64| {
        let gate = Arc::new(Gate::default());
        let image = Arc::new(MemFile::new());
        Converter::new(Format::QCOW2).create_to(4 * BLOCK, image.clone()).unwrap();
        gate.file.write_all_at(&image.to_vec(), 0).unwrap();
        let disk = OpenOptions::new().format(Format::QCOW2).open_disk_in(gate.clone()).unwrap();
        gate.set(GateState::Closed);
        std::thread::scope(|scope| {
            scope.spawn(|| disk.write_all_at(&[1; 512], first).unwrap());
            gate.wait();
            scope.spawn(|| disk.write_all_at(&[2; 512], second).unwrap());
            // Time for the second request to do what it must not do yet.
            std::thread::sleep(Duration::from_millis(50));
            gate.set(GateState::Open);
        });
        for (offset, byte) in [(first, 1), (second, 2)] {
            let mut found = [0; 512];
            disk.read_exact_at(&mut found, offset).unwrap();
            assert_eq!(found, [byte; 512], "requests at {first} and {second}: {offset}");
        }
    };
    for block in [0, BLOCK] {
        request(block, block + 512);
        request(block + BLOCK - 512, block);
        request(block + 1024, block + BLOCK - 512);
        request(block + BLOCK - 512, block + BLOCK - 1024);
    }
}
