//! The settings of connections to servers.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::Client;
use crate::error::Result;

/// Settings for connecting to a server. Those of [`connect`](crate::nbd::connect) are the default.
///
/// ```no_run
/// use std::sync::Arc;
/// use std::sync::atomic::AtomicBool;
///
/// use diskimage::nbd::Connector;
///
/// let cancel = Arc::new(AtomicBool::new(false));
/// let client = Connector::new().cancel(cancel).connect("nbd://localhost/disk")?;
/// # let _ = client;
/// # Ok::<(), diskimage::Error>(())
/// ```
#[derive(Clone, Default)]
pub struct Connector {
    pub(super) cancel: Option<Arc<AtomicBool>>,
    /// The metadata context, unless it is `base:allocation`.
    pub(super) context: Option<String>,
}

impl Connector {
    /// The default settings.
    pub fn new() -> Self {
        Self::default()
    }

    /// Ends requests, the handshake too, with [`Error::Cancelled`](crate::Error::Cancelled) soon after `cancel` becomes true, also while the server
    /// is silent.
    #[must_use]
    pub fn cancel(mut self, cancel: Arc<AtomicBool>) -> Self {
        self.cancel = Some(cancel);
        self
    }

    /// Asks for this metadata context instead of `base:allocation`, for [`Client::states`]. Holes of the export are not known then.
    #[must_use]
    pub fn context(mut self, name: impl Into<String>) -> Self {
        self.context = Some(name.into());
        self
    }

    /// Connects to the server that an NBD URI names, and opens the export.
    ///
    /// # Errors
    /// As [`connect`](crate::nbd::connect); [`Error::Cancelled`](crate::Error::Cancelled).
    pub fn connect(&self, uri: &str) -> Result<Client> {
        Client::connect(uri, self)
    }
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connector").finish_non_exhaustive()
    }
}
