//! The connections that are there, and the places they hold.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::places::{Acquaintance, Answer, Bounds, Places, Ticket};

/// A connection that another thread can end.
pub trait Connection: Send + 'static {
    /// Whoever reads or writes on it returns.
    fn end(&self);
}

impl Connection for Arc<TcpStream> {
    fn end(&self) {
        let _ = self.shutdown(Shutdown::Both);
    }
}

impl Connection for Arc<UnixStream> {
    fn end(&self) {
        let _ = self.shutdown(Shutdown::Both);
    }
}

struct State<O, C> {
    places: Places<O>,
    connections: HashMap<Ticket, C>,
    closed: bool,
}

/// Who is connected to a port. Shared by the thread that accepts and those that serve.
pub struct Register<O, C> {
    state: Arc<Mutex<State<O, C>>>,
}

impl<O, C> Clone for Register<O, C> {
    fn clone(&self) -> Self {
        Self { state: Arc::clone(&self.state) }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // The state stays consistent if a holder panicked: every change is whole before anything can panic.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<O: Eq + Hash, C: Connection> Register<O, C> {
    /// Nobody is there.
    pub fn new(bounds: Bounds) -> Self {
        let state = State { places: Places::new(bounds), connections: HashMap::new(), closed: false };
        Self { state: Arc::new(Mutex::new(state)) }
    }

    /// A place for `connection`, at the cost of an idle one if need be; none if there is none, or after
    /// [`close`](Self::close).
    pub fn enter(&self, origin: O, standing: Acquaintance, connection: C) -> Option<Place<O, C>> {
        let mut state = lock(&self.state);
        if state.closed {
            return None;
        }
        let Answer::In { ticket, instead } = state.places.enter(origin, standing, Instant::now()) else { return None };
        // It stays in the list until its thread has let go of it.
        if let Some(loser) = instead.and_then(|t| state.connections.get(&t)) {
            loser.end();
        }
        state.connections.insert(ticket, connection);
        Some(Place { register: self.clone(), ticket })
    }

    /// Ends the connection that has been idle for longest; answers whether there was one.
    pub fn make_room(&self) -> bool {
        let mut state = lock(&self.state);
        let Some(ticket) = state.places.make_room(Instant::now()) else { return false };
        if let Some(loser) = state.connections.get(&ticket) {
            loser.end();
        }
        true
    }

    /// Connections that hold a place.
    pub fn taken(&self) -> usize {
        lock(&self.state).places.taken()
    }

    /// Ends all, and lets nobody in any more.
    pub fn close(&self) {
        let mut state = lock(&self.state);
        state.closed = true;
        state.connections.values().for_each(Connection::end);
    }
}

/// A connection's place, idle at first. It is given back when this is dropped.
pub struct Place<O: Eq + Hash, C: Connection> {
    register: Register<O, C>,
    ticket: Ticket,
}

impl<O: Eq + Hash, C: Connection> Place<O, C> {
    /// From now on it is served and cannot be lost: for what has a deadline of its own.
    pub fn busy(&self) {
        lock(&self.register.state).places.busy(self.ticket);
    }

    /// From now on the client owes the next word.
    pub fn idle(&self) {
        lock(&self.register.state).places.idle(self.ticket, Instant::now());
    }
}

impl<O: Eq + Hash, C: Connection> Drop for Place<O, C> {
    fn drop(&mut self) {
        let mut state = lock(&self.register.state);
        state.connections.remove(&self.ticket);
        state.places.leave(self.ticket);
    }
}
