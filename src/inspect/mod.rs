//! A verdict on an untrusted image: whether a service that takes uploads can accept it.
//!
//! ```no_run
//! use diskimage::OpenOptions;
//! use diskimage::inspect::{Policy, Verdict};
//!
//! let judgement = Policy::built_in("glance")?.judge(&OpenOptions::new(), "upload.qcow2");
//! if judgement.verdict != Verdict::Safe {
//!     for finding in &judgement.findings {
//!         eprintln!("{}: {}", finding.check, finding.message);
//!     }
//! }
//! # Ok::<(), diskimage::Error>(())
//! ```
//!
//! Nothing but the file itself is opened: a file that it names is a finding. All metadata is read and checked, in bounded memory; guest data
//! only if the policy says so (`read-data`), for payloads that do not decode. Findings name the check, and the field, offset, value and rule where there are such.
//!
//! These are the checks. "Always" means that no policy accepts such an image. The last column is what the format inspector of OpenStack
//! (`oslo.utils.imageutils.format_inspector`) does in its place.
//!
//! | check | refused | by the policy | OpenStack |
//! |---|---|---|---|
//! | `format` | another format, a file that is no disk | `formats` | same, by `disk_format` |
//! | `signatures` | several formats match; an image that is also an optical disc or has a partition table; an extension that contradicts the content | always | several formats match |
//! | `content` | a raw disk that is a kernel, for example; always an empty file, an empty disk and a text | `content` | a GPT with an odd protective MBR |
//! | `packages` | a disk in an archive, in which files are missing; always, with `read-data`, a file with another digest than in the manifest | `packages` | none: an archive is a raw disk |
//! | `ambiguities` | what other programs find in the image, and this one does not: a name of a parent in VMDK, another size of a VHD | always | none |
//! | `compression` | a compressed file | `compressed` | none: a raw disk |
//! | `subformats` | another createType of VMDK, or none | `vmdk-subformats` | same |
//! | `external-files` | a backing file or parent of any format, a data file, extents, the disks of an OVF descriptor; cannot tell, with `read-data`: their data | `external-files` | qcow2; extents of VMDK |
//! | `features` | cannot tell: features that are unknown here | always | unknown features of qcow2, compatible ones too |
//! | `structure` | a field that breaks a rule of the format, or points beyond the file; a payload that does not decode | always; `read-data` | version and footer of VMDK, version of LUKS |
//! | `metadata` | tables that overlap, counts that are wrong; cannot tell: parts that could not be checked | always | none |
//! | `corrupt` | an image that is marked as corrupt | always | none |
//! | `limits` | a number above those of [`Limits`](crate::Limits), while the image is opened or its metadata are checked; also the cost of a key slot | always, by `limits` | none |
//! | `encryption` | an encrypted image, whose content is not known; cannot tell: none of the secrets given unlocks it, or none is given although `read-data` asks for the data | `encrypted` | the passphrase of LUKS, if there is one |
//! | `closed` | a log to be replayed, a dirty bit | `unclosed` | none |
//! | `snapshots` | internal snapshots, or a damaged table of them | `snapshots` | none |
//! | `virtual-size` | a larger disk or snapshot | `virtual-size` | left to the caller |
//! | `file-size` | a larger file | `file-size` | left to the caller |
//! | `expansion` | a disk that is so many times as large as its file | `expansion` | none |
//! | `leaks` | space in the file that nothing uses | `leaks` | none |
//! | `warnings` | other oddities that do not prevent reading | `warnings` | none |
//! | `readable` | cannot tell: the file cannot be read, a virtual machine uses it, or its length or its time of modification changed meanwhile | always | an exception |
//!
//! A format that the inspector bans, qed, is in none of the built-in policies but `default`.

mod examination;
mod finding;
mod policy;

use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use crate::error::Error;
use crate::image::OpenOptions;
use crate::io::ReadAt;
use crate::limits::LimitName;
use crate::name::Name;
#[cfg(feature = "remote")]
use crate::remote::Remote;
use crate::spool::spool;
use examination::Examination;
pub use finding::{Finding, Verdict};
pub use policy::Policy;

/// The verdict on one file, with its reasons.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Judgement {
    /// The worst verdict of the findings.
    pub verdict: Verdict,
    /// Name of the format, if it was found; of the package, if it is one.
    pub format: Option<&'static str>,
    /// Virtual size in bytes, if it was found; of the largest disk of a package.
    pub virtual_size: Option<u64>,
    /// Names of the compressions around the image or the package, the outermost one first.
    pub compression: Vec<&'static str>,
    /// The other files that the image names, as it does: backing files, data files, extents. They were not opened.
    pub external_files: Vec<Name>,
    /// The reasons, in the order in which they were found.
    pub findings: Vec<Finding>,
}

impl Policy {
    /// Judges the image at `path`. What cannot be read is a finding, too. Of the options, the format, the limits and the secrets are used; no
    /// other file is opened, whatever the reference policy is.
    ///
    /// ```
    /// use diskimage::OpenOptions;
    /// use diskimage::inspect::{Policy, Verdict};
    ///
    /// let judgement = Policy::default().judge(&OpenOptions::new(), "missing.qcow2");
    /// assert_eq!((judgement.verdict, judgement.findings[0].check), (Verdict::Unknown, "readable"));
    /// ```
    pub fn judge(&self, options: &OpenOptions, path: impl AsRef<Path>) -> Judgement {
        Examination::new(self, options).judge(path.as_ref())
    }

    /// Judges the image in `source`, as [`judge`](Self::judge) does.
    ///
    /// ```
    /// use std::sync::Arc;
    ///
    /// use diskimage::OpenOptions;
    /// use diskimage::inspect::{Policy, Verdict};
    /// use diskimage::io::MemFile;
    ///
    /// let mut file = b"QFI\xfb\0\0\0\x03".to_vec();
    /// file.resize(4096, 0xff);
    /// let judgement = Policy::default().judge_source(&OpenOptions::new(), Arc::new(MemFile::from(file)));
    /// assert_eq!(judgement.verdict, Verdict::Unsafe);
    /// ```
    pub fn judge_source(&self, options: &OpenOptions, source: Arc<dyn ReadAt>) -> Judgement {
        Examination::new(self, options).judge_source(source)
    }

    /// Judges the image at an http or https URL, as [`judge`](Self::judge) does. Only what is needed of it is fetched; from a server without range
    /// requests it is read as [`judge_stream`](Self::judge_stream) does.
    ///
    /// ```no_run
    /// use diskimage::OpenOptions;
    /// use diskimage::inspect::Policy;
    ///
    /// let judgement = Policy::default().judge_url(&OpenOptions::new(), "https://cloud.example.com/disk.qcow2");
    /// println!("{}", judgement.verdict.as_str());
    /// ```
    #[cfg(feature = "remote")]
    pub fn judge_url(&self, options: &OpenOptions, url: &str) -> Judgement {
        match options.remote(url) {
            Ok(Remote::File(file)) => self.judge_source(options, file),
            Ok(Remote::Stream(stream)) => self.judge_stream(options, stream),
            Err(error) => Judgement::from(Finding::from(&error)),
        }
    }

    /// Judges the image in `stream`, as [`judge`](Self::judge) does: it is copied to a temporary file before, as far as the policy and the limits
    /// allow its size.
    ///
    /// ```
    /// use diskimage::OpenOptions;
    /// use diskimage::inspect::{Policy, Verdict};
    ///
    /// let judgement = Policy::parse("file-size = '1K'")?.judge_stream(&OpenOptions::new(), std::io::repeat(7));
    /// assert_eq!((judgement.verdict, judgement.findings[0].check), (Verdict::Unsafe, "file-size"));
    /// # Ok::<(), diskimage::Error>(())
    /// ```
    pub fn judge_stream(&self, options: &OpenOptions, stream: impl Read) -> Judgement {
        let most = self.limit(options).stream_limit().min(self.file_size.unwrap_or(u64::MAX));
        match spool(stream, &options.spool_directory(), "stream", LimitName::VirtualSize, most) {
            Ok(file) => self.judge_source(options, Arc::new(file)),
            Err(error) => {
                let mut finding = Finding::from(&error);
                if matches!(error, Error::Limit { .. }) && self.file_size == Some(most) {
                    finding.check = "file-size";
                }
                Judgement::from(finding)
            }
        }
    }
}

/// Of a file of which nothing else is known.
impl From<Finding> for Judgement {
    fn from(finding: Finding) -> Self {
        Judgement { verdict: finding.verdict, findings: vec![finding], ..Judgement::default() }
    }
}

#[cfg(test)]
mod tests;
