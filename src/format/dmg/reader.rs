//! Opening and mapping.

use std::ops::Range;
use std::sync::Arc;

use super::run::{BlockTable, Bounds, Run, RunKind};
use super::trailer::{Tables, Trailer};
use super::{FIELDS, FORMAT_NAME, SECTOR, plist, resources};
use crate::driver::{Compressed, Extent, ExtentKind, FileId, Location, OpenContext, SparseRead};
use crate::error::{Problem, Result};
use crate::format::shared::table::{Field, read_table};
use crate::info::ImageInfo;
use crate::io::ReadAt;

/// Largest length of the property list, or of the resource fork, in bytes: a disk of about 500 GiB in runs of 1 MiB.
const MAX_TABLES: u64 = 32 << 20;

/// An open image.
#[derive(Debug)]
pub(super) struct Reader {
    info: ImageInfo,
    /// In ascending order. They do not overlap, neither on the disk nor in the file.
    runs: Vec<Run>,
    /// The block tables, for messages.
    tables: Field,
}

impl Reader {
    pub fn open(file: Arc<dyn ReadAt>, cx: &OpenContext<'_>) -> Result<Reader> {
        cx.refuse_snapshots(FORMAT_NAME)?;
        let trailer = Trailer::read(&*file, cx)?;
        let (runs, tables) = match &trailer.tables {
            Tables::Plist(range) | Tables::Resources(range) => {
                (read_runs(&*file, range, &trailer, cx)?, FIELDS.at("block table", range.start))
            }
            Tables::None => {
                let field = FIELDS.at("data fork", trailer.at + 24);
                (vec![whole_fork(&trailer, field)?], field)
            }
        };
        // Without a size, the disk is as long as its runs.
        let disk_size = trailer.disk_size.or_else(|| runs.last().map(|run| run.end));
        let disk_size = disk_size.ok_or_else(|| tables.fault(Problem::Missing))?;
        cx.check_virtual_size(FORMAT_NAME, disk_size)?;
        Ok(Reader { info: ImageInfo::new(FORMAT_NAME, disk_size), runs, tables })
    }

    /// The runs in the order of the disk.
    pub fn runs(&self) -> &[Run] {
        &self.runs
    }

    /// The run that has the byte at guest offset `offset`.
    fn run_at(&self, offset: u64) -> Result<&Run> {
        let index = self.runs.partition_point(|run| run.end <= offset);
        let run = self.runs.get(index).filter(|run| run.start <= offset);
        run.ok_or_else(|| {
            let finding = "no run has this sector";
            Field { name: "sector", ..self.tables }.fault(Problem::Conflict { value: offset / SECTOR, finding })
        })
    }
}

/// An uncompressed disk without block tables.
fn whole_fork(trailer: &Trailer, field: Field) -> Result<Run> {
    let end = trailer.disk_size.unwrap_or(trailer.data_len / SECTOR * SECTOR);
    field.within(trailer.data_fork, end, trailer.data_fork + trailer.data_len)?;
    Ok(Run { start: 0, end, at: trailer.data_fork, kind: RunKind::Raw })
}

/// Reads the runs of all block tables, in the order of the disk.
fn read_runs(file: &dyn ReadAt, range: &Range<u64>, trailer: &Trailer, cx: &OpenContext<'_>) -> Result<Vec<Run>> {
    let is_plist = matches!(trailer.tables, Tables::Plist(_));
    let field = FIELDS.at(if is_plist { "property list" } else { "resource fork" }, range.start);
    field.at_most(range.end - range.start, MAX_TABLES)?;
    let bytes = read_table(file, range.start, range.end - range.start, field, cx.budget)?;
    let bounds = Bounds { disk_size: trailer.disk_size, data_fork: trailer.data_fork, data_end: trailer.at };
    let mut runs = Vec::new();
    let use_table = |table: &[u8], field: Field| {
        let table = BlockTable::parse(table, field, bounds)?;
        let size = table.entry_count() * (size_of::<Run>() + size_of::<Range<u64>>());
        cx.budget.take(size as u64, FORMAT_NAME, field.name, field.at)?;
        table.runs().try_for_each(|run| run.map(|run| runs.push(run)))
    };
    match is_plist {
        true => plist::block_tables(&bytes, range.start, cx.budget, use_table)?,
        false => resources::block_tables(&bytes, range.start, use_table)?,
    }
    runs.sort_unstable_by_key(|run| run.start);
    let tables = FIELDS.at("block table", range.start);
    check_overlaps(&runs, tables)?;
    Ok(runs)
}

/// Checks that no two of the runs, which are in the order of the disk, have a sector or a byte of the file in common.
fn check_overlaps(runs: &[Run], field: Field) -> Result<()> {
    let pairs = |ranges: &[Range<u64>]| {
        ranges.windows(2).find_map(|pair| match pair {
            [first, second] if first.end > second.start => Some(second.start),
            _ => None,
        })
    };
    let mut ranges: Vec<_> = runs.iter().map(|run| run.start..run.end).collect();
    if let Some(offset) = pairs(&ranges) {
        let finding = "two runs have this sector";
        return Err(Field { name: "sector", ..field }.fault(Problem::Conflict { value: offset / SECTOR, finding }));
    }
    ranges.clear();
    ranges.extend(runs.iter().map(Run::host).filter(|host| !host.is_empty()));
    ranges.sort_unstable_by_key(|host| host.start);
    match pairs(&ranges) {
        Some(offset) => Err(field.fault(Problem::Overlap { offset, with: "another run" })),
        None => Ok(()),
    }
}

impl SparseRead for Reader {
    fn info(&self) -> &ImageInfo {
        &self.info
    }

    fn extent_at(&self, range: Range<u64>) -> Result<Extent> {
        self.info.check_offset(range.start)?;
        let run = self.run_at(range.start)?;
        let location = |offset| Location { file: FileId::default(), offset };
        let kind = match run.kind {
            RunKind::Zeros => ExtentKind::Zero { allocated: None },
            RunKind::Raw => ExtentKind::Data(location(run.at + (range.start - run.start))),
            RunKind::Compressed(codec, stored_len) => {
                let unit_len = (run.end - run.start) as u32;
                let at = location(run.at);
                ExtentKind::Compressed(Compressed {
                    at,
                    stored_len,
                    codec,
                    unit: run.start,
                    unit_len,
                    min_len: unit_len,
                })
            }
        };
        Ok(Extent::new(range.start..run.end, kind))
    }

    fn host_alignment(&self) -> Option<u64> {
        None
    }
}
