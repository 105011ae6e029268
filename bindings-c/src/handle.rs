//! Handles: numbers in the shape of pointers.
//!
//! ```text
//! 63      56 55               24 23          0
//! │ kind   │ generation         │ place      │
//! ```
//!
//! A place in the table is used again with the next generation, and a kind is never 0. So a handle that was freed names a
//! generation that is past, one of another kind has another kind in it, and no handle is an address: with its top byte set it
//! lies outside of what a process can map. After 2³² uses a place is given up.

use std::{
    any::Any,
    ffi::c_void,
    fmt,
    marker::PhantomData,
    sync::{Arc, PoisonError, RwLock},
};

use crate::failure::{Failure, Status};

/// What a handle can name.
pub(crate) trait Object: Any + Send + Sync {
    /// Its number in handles; never reused.
    const KIND: u8;
    /// As the header calls it.
    const NAME: &'static str;
}

/// A handle as C passes it. Whatever it is, looking it up is safe.
#[repr(transparent)]
pub(crate) struct Handle<T>(*mut c_void, PhantomData<fn() -> T>);

impl<T> Clone for Handle<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Handle<T> {}

impl<T: Object> fmt::Debug for Handle<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:#x}", T::NAME, self.0.addr())
    }
}

const PLACE_BITS: u32 = 24;
const GENERATION_BITS: u32 = 32;

struct Slot {
    generation: u32,
    kind: u8,
    object: Option<Arc<dyn Any + Send + Sync>>,
}

struct Table {
    slots: Vec<Slot>,
    free: Vec<u32>,
}

static TABLE: RwLock<Table> = RwLock::new(Table {
    slots: Vec::new(),
    free: Vec::new(),
});

/// What a value of a handle says.
struct Parts {
    place: usize,
    generation: u32,
    kind: u8,
}

fn parts(value: u64) -> Parts {
    Parts {
        place: (value & ((1 << PLACE_BITS) - 1)) as usize,
        generation: (value >> PLACE_BITS) as u32,
        kind: (value >> (PLACE_BITS + GENERATION_BITS)) as u8,
    }
}

impl<T: Object> Handle<T> {
    /// Names an object.
    pub(crate) fn new(object: T) -> Result<Self, Failure> {
        Self::of(Arc::new(object))
    }

    pub(crate) fn of(object: Arc<T>) -> Result<Self, Failure> {
        let mut table = TABLE.write().unwrap_or_else(PoisonError::into_inner);
        let place = match table.free.pop() {
            Some(place) => place,
            None if table.slots.len() < 1 << PLACE_BITS => {
                table.slots.push(Slot {
                    generation: 0,
                    kind: 0,
                    object: None,
                });
                (table.slots.len() - 1) as u32
            }
            None => {
                let most = 1_u32 << PLACE_BITS;
                let why = format!("{most} handles are in use, as many as there can be");
                return Err(Failure::new(Status::Memory, why).hint("free those that are done with"));
            }
        };
        let slot = &mut table.slots[place as usize];
        slot.kind = T::KIND;
        slot.object = Some(object);
        let value = u64::from(T::KIND) << (PLACE_BITS + GENERATION_BITS)
            | u64::from(slot.generation) << PLACE_BITS
            | u64::from(place);
        Ok(Self(
            std::ptr::without_provenance_mut(value as usize),
            PhantomData,
        ))
    }

    pub(crate) fn is_null(self) -> bool {
        self.0.is_null()
    }

    /// The object, which lives for as long as the result.
    pub(crate) fn get(self, argument: &str) -> Result<Arc<T>, Failure> {
        let table = TABLE.read().unwrap_or_else(PoisonError::into_inner);
        let at = self.find(&table, argument)?;
        let object = table.slots[at].object.clone();
        drop(table);
        let object = object.and_then(|object| object.downcast().ok());
        object.ok_or_else(|| no_handle::<T>("was freed").at(argument))
    }

    /// Gives it up. What uses it at the moment keeps it for so long.
    pub(crate) fn free(self) -> Result<(), Failure> {
        if self.is_null() {
            return Ok(());
        }
        let mut table = TABLE.write().unwrap_or_else(PoisonError::into_inner);
        let at = self.find(&table, T::NAME)?;
        let slot = &mut table.slots[at];
        let object = slot.object.take();
        if let Some(next) = slot.generation.checked_add(1) {
            slot.generation = next;
            table.free.push(at as u32);
        }
        // What its end takes, and calls, is not done under the lock.
        drop(table);
        drop(object);
        Ok(())
    }

    fn find(self, table: &Table, argument: &str) -> Result<usize, Failure> {
        if self.is_null() {
            return Err(null(argument));
        }
        let parts = parts(self.0.addr() as u64);
        let slot = table.slots.get(parts.place);
        let slot = slot.ok_or_else(|| no_handle::<T>("was never given out").at(argument))?;
        if parts.kind != T::KIND {
            let why = "is a handle of another kind, or an address";
            return Err(no_handle::<T>(why).at(argument));
        }
        if slot.generation != parts.generation || slot.object.is_none() {
            return Err(no_handle::<T>("was freed").at(argument));
        }
        if slot.kind != T::KIND {
            return Err(no_handle::<T>("is a handle of another kind").at(argument));
        }
        Ok(parts.place)
    }
}

fn no_handle<T: Object>(why: &str) -> Failure {
    let problem = format!("{why}; expected a {}", T::NAME);
    Failure::new(Status::Handle, problem)
}

/// An argument that must not be NULL is.
pub(crate) fn null(argument: &str) -> Failure {
    Failure::new(Status::Null, "is NULL and must not be").at(argument)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct One(u32);
    struct Other;

    impl Object for One {
        const KIND: u8 = 200;
        const NAME: &'static str = "one";
    }

    impl Object for Other {
        const KIND: u8 = 201;
        const NAME: &'static str = "other";
    }

    fn cast<T, U>(handle: Handle<T>) -> Handle<U> {
        Handle(handle.0, PhantomData)
    }

    fn refused<T: Object>(handle: Handle<T>) -> String {
        let failure = handle.get("it").err().unwrap();
        assert_eq!(failure.field, "it");
        failure.problem.clone()
    }

    #[test]
    fn a_handle_finds_its_object_and_nothing_else_does() {
        let one = Handle::new(One(7)).unwrap();
        assert_eq!(one.get("it").unwrap().0, 7);
        assert!(refused(cast::<_, Other>(one)).contains("another kind"));
        assert!(refused(Handle::<One>(std::ptr::null_mut(), PhantomData)).contains("NULL"));
        let local = 3_u64;
        let address = std::ptr::from_ref(&local).cast_mut().cast();
        assert!(refused(Handle::<One>(address, PhantomData)).contains("one"));
    }

    #[test]
    fn a_freed_handle_stays_freed_when_its_place_is_used_again() {
        let one = Handle::new(One(7)).unwrap();
        let kept = one.get("it").unwrap();
        one.free().unwrap();
        assert_eq!(kept.0, 7);
        let others: Vec<_> = (0..100).map(|n| Handle::new(One(n)).unwrap()).collect();
        assert!(refused(one).contains("freed"));
        assert_eq!(one.free().err().unwrap().status, Status::Handle);
        others.into_iter().for_each(|other| other.free().unwrap());
    }
}
