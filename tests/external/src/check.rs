//! Checks of the table.

use std::collections::BTreeMap;
use std::sync::Arc;

use diskimage::driver::{CheckReport, OpenContext};
use diskimage::Result;
use diskimage::io::ReadAt;

use crate::header::{Header, file_len};

pub fn check(file: Arc<dyn ReadAt>, cx: &OpenContext<'_>) -> Result<CheckReport> {
    let header = Header::read(&*file, cx)?;
    let table = header.read_table(&*file, cx)?;
    let file_len = file_len(&*file)?;
    let size = header.cluster_size;
    let first = (header.table_offset + header.table_len()).div_ceil(size);
    let mut report = CheckReport::default();
    report.total_clusters = header.cluster_count();
    // The guest cluster that uses each host cluster.
    let mut users = BTreeMap::new();
    for (cluster, host) in (0..).zip(table.iter().map(|entry| u64::from(*entry))).filter(|(_, host)| *host != 0) {
        report.allocated_clusters += 1;
        report.image_end_offset = report.image_end_offset.max((host + 1) * size);
        let at = header.entry_offset(cluster);
        if host < first {
            report.corruption(|| format!("table entry at {at:#x} points into the metadata"));
        } else if host * size + header.guest_len(cluster) > file_len {
            report.corruption(|| format!("table entry at {at:#x} points beyond the end of the file"));
        }
        if let Some(other) = users.insert(host, cluster) {
            report.corruption(|| format!("guest clusters {other} and {cluster} share host cluster {host}"));
        }
    }
    for host in (first..file_len.div_ceil(size)).filter(|host| !users.contains_key(host)) {
        report.leak(|| format!("host cluster {host} is not used"));
    }
    Ok(report)
}
