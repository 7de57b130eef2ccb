//! The connections of a client, each of which is used by one thread at a time.

use std::fmt;
use std::io;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use super::connection::{Connection, Failure};
use super::handshake::Export;

/// Open connections to one export, and the way to open more.
pub struct Pool {
    state: Mutex<State>,
    changed: Condvar,
    /// What every connection has to offer: that of the first one.
    export: Export,
    connect: Box<dyn Fn() -> io::Result<Connection> + Send + Sync>,
}

struct State {
    idle: Vec<Connection>,
    /// Number of connections, with those in use and those that are being opened.
    open: usize,
    /// Most connections, at least 1.
    most: usize,
}

impl Pool {
    /// A pool of up to `most` connections.
    pub fn new(
        first: Connection,
        most: usize,
        connect: impl Fn() -> io::Result<Connection> + Send + Sync + 'static,
    ) -> Pool {
        let export = *first.export();
        let state = Mutex::new(State { idle: vec![first], open: 1, most });
        Pool { state, changed: Condvar::new(), export, connect: Box::new(connect) }
    }

    /// Sends a request on a connection that no other thread uses. A connection that fails is closed.
    pub fn with<T>(&self, request: impl FnOnce(&mut Connection) -> Result<T, Failure>) -> Result<T, Failure> {
        let mut connection = self.take()?;
        // If the request panics, the connection is lost.
        let returns = Returns { pool: self, connection: None };
        let answer = request(&mut connection);
        returns.put_back((!matches!(answer, Err(Failure::Broken(_)))).then_some(connection));
        answer
    }

    fn take(&self) -> io::Result<Connection> {
        let mut state = self.lock();
        loop {
            if let Some(connection) = state.idle.pop() {
                return Ok(connection);
            }
            if state.open < state.most {
                state.open += 1;
                drop(state);
                let opened = (self.connect)().and_then(|connection| self.checked(connection));
                state = self.lock();
                match opened {
                    Ok(connection) => return Ok(connection),
                    Err(error) => {
                        state.open -= 1;
                        self.changed.notify_all();
                        if state.open == 0 {
                            return Err(error);
                        }
                        // The server allows no more. Those that are open will do.
                        state.most = state.open;
                    }
                }
            } else {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }

    /// A further connection, if it is to the same export.
    fn checked(&self, connection: Connection) -> io::Result<Connection> {
        if *connection.export() == self.export {
            return Ok(connection);
        }
        connection.close();
        Err(io::Error::other("the export has changed"))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The place of a connection in use.
struct Returns<'a> {
    pool: &'a Pool,
    /// `None` if it has failed.
    connection: Option<Connection>,
}

impl Returns<'_> {
    fn put_back(mut self, connection: Option<Connection>) {
        self.connection = connection;
    }
}

impl Drop for Returns<'_> {
    fn drop(&mut self) {
        let mut state = self.pool.lock();
        match self.connection.take() {
            Some(connection) => state.idle.push(connection),
            None => state.open -= 1,
        }
        drop(state);
        self.pool.changed.notify_one();
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        state.idle.drain(..).for_each(Connection::close);
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.lock();
        f.debug_struct("Pool").field("open", &state.open).field("most", &state.most).finish_non_exhaustive()
    }
}
