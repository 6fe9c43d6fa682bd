//! A bus layout that changes while vCPUs use it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// The current one of a sequence of values, such as the [`MmioBus`](super::MmioBus) after a BAR has
/// moved.
///
/// Each vCPU thread holds a [`View`]. A view compares one atomic generation number an access; only
/// after a [`Swap::replace`] does it take the lock, once, to fetch the new value. An access that was
/// under way when the value was replaced ends on the old one, as an access that is under way on a
/// bus does.
///
/// Never replace from inside a device: the builder locks the devices it is given. Note that the
/// layout changed, and rebuild once the access has returned.
///
/// ```
/// use std::sync::Arc;
/// use trapline_device::bus::Swap;
///
/// let swap = Arc::new(Swap::new("before"));
/// let mut view = swap.view();
/// assert_eq!(*view.get(), "before");
/// swap.replace("after");
/// assert_eq!(*view.get(), "after");
/// ```
#[derive(Debug)]
pub struct Swap<T> {
    current: Mutex<Arc<T>>,
    generation: AtomicU64,
}

impl<T> Swap<T> {
    /// Starts with `value`.
    pub fn new(value: T) -> Self {
        Self { current: Mutex::new(Arc::new(value)), generation: AtomicU64::new(0) }
    }

    /// The current value; takes the lock.
    pub fn load(&self) -> Arc<T> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Makes `value` the current one. Views see it at their next access.
    pub fn replace(&self, value: T) {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        *current = Arc::new(value);
        self.generation.fetch_add(1, Ordering::Release);
    }

    /// A view for one thread.
    pub fn view(self: &Arc<Self>) -> View<T> {
        let generation = self.generation.load(Ordering::Acquire);
        View { value: self.load(), swap: self.clone(), generation }
    }
}

/// One thread's view of a [`Swap`].
#[derive(Debug, Clone)]
pub struct View<T> {
    value: Arc<T>,
    swap: Arc<Swap<T>>,
    generation: u64,
}

impl<T> View<T> {
    /// The current value to keep, as [`View::get`].
    pub fn current(&mut self) -> Arc<T> {
        self.get();
        self.value.clone()
    }

    /// The current value, without a lock unless it was replaced since the last call.
    pub fn get(&mut self) -> &T {
        let generation = self.swap.generation.load(Ordering::Acquire);
        if generation != self.generation {
            // Read before the value: a replacement in between costs one needless fetch, no more.
            self.generation = generation;
            self.value = self.swap.load();
        }
        &self.value
    }
}
