//! The registration cache: which memory peers may address.

use std::collections::BTreeMap;

use moai_memory::{Hold, Region};
use slab::Slab;

use crate::limits::MAX_REGISTRATIONS;
use crate::{Error, Pieces, Refusal, RemoteKey, Rights};

/// One use of one slot of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RegistrationId {
    slot: u32,
    generation: u32,
}

impl RegistrationId {
    /// The registration in entry `slot` during use `generation` of that entry. For those who keep a table themselves.
    #[must_use]
    pub const fn new(slot: u32, generation: u32) -> Self {
        Self { slot, generation }
    }

    /// Its entry in the table.
    #[must_use]
    pub const fn slot(self) -> u32 {
        self.slot
    }

    /// Which use of the entry it is; not 0.
    #[must_use]
    pub const fn generation(self) -> u32 {
        self.generation
    }
}

/// Memory that was registered.
#[derive(Debug)]
#[non_exhaustive]
pub struct Registration {
    /// Index of its region among those that callers lend.
    pub region: u32,
    /// Keeps the memory where it is for as long as peers may address it.
    pub hold: Hold,
    /// What peers may do.
    pub rights: Rights,
    /// How often it was registered.
    uses: u32,
}

/// The memory of one interface that peers may address.
///
/// A slab of registrations, the generation of each of its slots, and an index by address. Registering the same
/// memory with the same rights again gives the same registration, counted.
///
/// A generation is used once: a key that outlived its registration finds another one, or none, in the slot.
/// A slot whose generations are used up is not used again.
#[derive(Debug)]
pub struct Registrations {
    epoch: u64,
    table: Slab<Registration>,
    /// Of each slot that was ever used.
    generations: Vec<u32>,
    /// First address of each registration, and its slot. Empty regions are not in it.
    by_address: BTreeMap<(usize, u32), usize>,
}

impl Registrations {
    /// An empty table in a life of this process named `epoch`.
    #[must_use]
    pub fn new(epoch: u64) -> Self {
        Self {
            epoch,
            table: Slab::new(),
            generations: Vec::new(),
            by_address: BTreeMap::new(),
        }
    }

    /// The life that keys of this table are of.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Registrations that there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// Whether nothing is registered.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    /// Registers `region`, which callers lend as number `index`.
    ///
    /// # Errors
    ///
    /// [`Error::TooManyRegistrations`] if the table is full.
    pub fn register(
        &mut self,
        index: u32,
        region: &Region,
        rights: Rights,
    ) -> Result<RegistrationId, Error> {
        let hold = region.hold();
        let (address, len) = (hold.address(), hold.len() as usize);
        let same = self.by_address.range((address, 0)..=(address, u32::MAX));
        for (_, &slot) in same {
            let known = &mut self.table[slot];
            if known.region == index && known.rights == rights && known.hold.len() as usize == len {
                known.uses += 1;
                return Ok(self.id(slot));
            }
        }
        if self.table.len() >= MAX_REGISTRATIONS {
            return Err(Error::TooManyRegistrations {
                limit: MAX_REGISTRATIONS,
            });
        }
        let slot = self.table.insert(Registration {
            region: index,
            hold,
            rights,
            uses: 1,
        });
        if slot == self.generations.len() {
            self.generations.push(0);
        }
        self.generations[slot] += 1;
        if len > 0 {
            self.by_address.insert((address, slot as u32), slot);
        }
        Ok(self.id(slot))
    }

    /// Takes back one registering. What is returned was the last one: keys of it are stale from here on.
    ///
    /// # Errors
    ///
    /// [`Error::NotRegistered`] for an id that is stale.
    pub fn deregister(&mut self, id: RegistrationId) -> Result<Option<Registration>, Error> {
        let Ok(known) = self.get(id) else {
            return Err(Error::NotRegistered {
                slot: id.slot,
                generation: id.generation,
            });
        };
        let (address, uses) = (known.hold.address(), known.uses);
        let slot = id.slot as usize;
        if uses > 1 {
            self.table[slot].uses -= 1;
            return Ok(None);
        }
        self.by_address.remove(&(address, id.slot));
        let gone = if self.generations[slot] == u32::MAX {
            // Kept as an entry that no id names, so that the slot is never used again.
            let entry = &mut self.table[slot];
            let region = Region::from_host(Vec::new());
            std::mem::replace(
                entry,
                Registration {
                    region: 0,
                    hold: region.hold(),
                    rights: Rights::NONE,
                    uses: 0,
                },
            )
        } else {
            self.table.remove(slot)
        };
        Ok(Some(gone))
    }

    /// The registration with that id.
    ///
    /// # Errors
    ///
    /// [`Refusal::Generation`] if it is gone.
    pub fn get(&self, id: RegistrationId) -> Result<&Registration, Refusal> {
        let slot = id.slot as usize;
        match self.table.get(slot) {
            Some(known) if known.uses > 0 && self.generations[slot] == id.generation => Ok(known),
            _ => Err(Refusal::Generation),
        }
    }

    /// As [`get`](Self::get), by the two parts of an id, as peers name it.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn by_slot(&self, slot: u32, generation: u32) -> Result<&Registration, Refusal> {
        self.get(RegistrationId { slot, generation })
    }

    /// The registration in a slot, whatever its generation; for those who have compared that just before.
    #[must_use]
    pub fn in_slot(&self, slot: u32) -> Option<&Registration> {
        self.table.get(slot as usize).filter(|known| known.uses > 0)
    }

    /// Checks what a peer wants with a registration: pieces whose `region` is a slot, of that `generation`.
    /// Returns the registration and the bytes of the pieces.
    ///
    /// # Errors
    ///
    /// The [`Refusal`] to answer with.
    pub fn admit(
        &self,
        epoch: u64,
        generation: u32,
        pieces: &Pieces<'_>,
        rights: Rights,
    ) -> Result<(&Registration, u64), Refusal> {
        if epoch != self.epoch {
            return Err(Refusal::Epoch);
        }
        let slot = pieces.region;
        let known = self.get(RegistrationId { slot, generation })?;
        if !known.rights.has(rights) {
            return Err(Refusal::Rights);
        }
        let total = pieces
            .check(known.hold.len())
            .map_err(|error| match error {
                crate::PiecesError::OutOfBounds { .. } => Refusal::Bounds,
                _ => Refusal::Malformed,
            })?;
        Ok((known, total))
    }

    /// The key of a registration for peers, without what only a provider knows.
    ///
    /// # Errors
    ///
    /// [`Error::NotRegistered`] for an id that is stale.
    pub fn key(&self, id: RegistrationId) -> Result<RemoteKey, Error> {
        let known = self.get(id).map_err(|_| Error::NotRegistered {
            slot: id.slot,
            generation: id.generation,
        })?;
        Ok(RemoteKey {
            rights: known.rights,
            kind: known.hold.kind(),
            epoch: self.epoch,
            slot: id.slot,
            generation: id.generation,
            len: known.hold.len(),
            address: 0,
            export: 0,
            offset: 0,
        })
    }

    /// The registration that covers `bytes` from `address` on, and how far into it they are. For callers that
    /// have pointers, not indices. With several, one of those that start last.
    #[must_use]
    pub fn covering(&self, address: usize, bytes: usize) -> Option<(RegistrationId, u64)> {
        let end = address.checked_add(bytes)?;
        // Registrations may overlap, so one that starts earlier may reach further. They seldom do: the first
        // look is nearly always the last.
        let before = self.by_address.range(..=(address, u32::MAX)).rev();
        for (&(start, _), &slot) in before {
            if start + self.table[slot].hold.len() as usize >= end {
                return Some((self.id(slot), (address - start) as u64));
            }
        }
        None
    }

    fn id(&self, slot: usize) -> RegistrationId {
        RegistrationId {
            slot: slot as u32,
            generation: self.generations[slot],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(slot: u32, bytes: u32, offsets: &[u64]) -> Pieces<'_> {
        Pieces {
            region: slot,
            bytes,
            count: 1,
            stride: 0,
            offsets,
        }
    }

    #[test]
    fn memory_registered_twice_is_one_registration_until_both_are_gone() {
        let region = Region::from_host(vec![0; 100]);
        let mut table = Registrations::new(7);
        let first = table.register(0, &region, Rights::READ).unwrap();
        assert_eq!(table.register(0, &region, Rights::READ).unwrap(), first);
        let other = table.register(0, &region, Rights::WRITE).unwrap();
        assert_ne!(other, first);
        assert_eq!(table.len(), 2);
        assert!(table.deregister(first).unwrap().is_none());
        assert!(table.get(first).is_ok());
        assert!(table.deregister(first).unwrap().is_some());
        assert_eq!(table.get(first).unwrap_err(), Refusal::Generation);
        assert!(table.deregister(first).is_err());
        assert!(table.get(other).is_ok());
        let again = table.register(0, &region, Rights::READ).unwrap();
        assert_eq!(again.slot(), first.slot());
        assert_ne!(again, first, "a slot used again is another registration");
    }

    #[test]
    fn a_key_is_good_for_what_it_says_and_nothing_else() {
        let region = Region::from_host(vec![0; 100]);
        let mut table = Registrations::new(7);
        let id = table.register(4, &region, Rights::READ).unwrap();
        let (slot, generation) = (id.slot(), id.generation());
        let ask = |epoch, generation, pieces: Pieces<'_>, rights| {
            let admitted = table.admit(epoch, generation, &pieces, rights);
            admitted.map(|(known, bytes)| (known.region, bytes))
        };
        let good = pieces(slot, 10, &[0, 90]);
        assert_eq!(ask(7, generation, good, Rights::READ), Ok((4, 20)));
        for (refused, why) in [
            (ask(8, generation, good, Rights::READ), Refusal::Epoch),
            (
                ask(7, generation + 1, good, Rights::READ),
                Refusal::Generation,
            ),
            (ask(7, 0, good, Rights::READ), Refusal::Generation),
            (
                ask(7, generation, pieces(slot + 1, 1, &[0]), Rights::READ),
                Refusal::Generation,
            ),
            (ask(7, generation, good, Rights::WRITE), Refusal::Rights),
            (
                ask(7, generation, pieces(slot, 10, &[91]), Rights::READ),
                Refusal::Bounds,
            ),
            (
                ask(7, generation, pieces(slot, 10, &[u64::MAX]), Rights::READ),
                Refusal::Bounds,
            ),
            (
                ask(7, generation, pieces(slot, 0, &[0]), Rights::READ),
                Refusal::Malformed,
            ),
        ] {
            assert_eq!(refused, Err(why));
        }
        let key = table.key(id).unwrap();
        assert_eq!((key.epoch, key.len, key.rights), (7, 100, Rights::READ));
    }

    #[test]
    fn an_address_finds_the_registration_around_it() {
        let regions: Vec<_> = (0..100)
            .map(|n| Region::from_host(vec![0; 10 + n]))
            .collect();
        let mut table = Registrations::new(1);
        let ids: Vec<_> = (0..100)
            .map(|n| {
                table
                    .register(n, &regions[n as usize], Rights::READ)
                    .unwrap()
            })
            .collect();
        for (region, id) in regions.iter().zip(&ids) {
            let start = region.hold().address();
            let len = region.len() as usize;
            assert_eq!(table.covering(start, len), Some((*id, 0)));
            assert_eq!(table.covering(start + 3, 4), Some((*id, 3)));
            assert_ne!(table.covering(start + 1, len).map(|(id, _)| id), Some(*id));
        }
        assert_eq!(table.covering(usize::MAX, 2), None);
        assert_eq!(table.covering(1, 1), None);
    }

    #[test]
    fn a_slot_without_generations_left_is_not_used_again() {
        let region = Region::from_host(vec![0; 8]);
        let mut table = Registrations::new(1);
        let id = table.register(0, &region, Rights::READ).unwrap();
        table.generations[0] = u32::MAX;
        let last = table.id(0);
        assert!(table.get(id).is_err());
        assert!(table.deregister(last).unwrap().is_some());
        let next = table.register(0, &region, Rights::READ).unwrap();
        assert_eq!(next.slot(), 1);
        assert!(table.get(last).is_err());
    }
}
