//! Names for the files of registered memory, and who has been sent them.

use std::collections::HashMap;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use moai_memory::Hold;
use moai_transport::Rights;

use crate::segment::export;
use crate::table::read_only;

/// The files of this interface's registrations.
///
/// Regions that were split from one share a file, and so its name: what is passed is counted in files.
#[derive(Debug, Default)]
pub(crate) struct Exports {
    /// By descriptor of the memory, which stays the same as long as it is registered, and whether it can be written.
    files: HashMap<(RawFd, bool), File>,
    /// Names are not used again.
    last: u64,
}

#[derive(Debug)]
struct File {
    name: u64,
    /// What is sent to peers.
    fd: OwnedFd,
    registrations: usize,
}

impl Exports {
    /// A registration begins. Returns the name of its file and where it starts there; `None` for memory that has none.
    pub(crate) fn begin(&mut self, hold: &Hold, rights: Rights) -> Option<(u64, u64)> {
        let key = key(hold, rights)?;
        let offset = hold.export()?.offset;
        if let Some(file) = self.files.get_mut(&key) {
            file.registrations += 1;
            return Some((file.name, offset));
        }
        // Without a descriptor to spare, the memory is registered without a file: it is reached in another way.
        let fd = export(hold).ok()?;
        self.last += 1;
        let fd = if key.1 { fd } else { read_only(fd) };
        self.files.insert(
            key,
            File {
                name: self.last,
                fd,
                registrations: 1,
            },
        );
        Some((self.last, offset))
    }

    /// A registration that has a file has ended; returns the file's name if it was the last of it.
    pub(crate) fn end(&mut self, hold: &Hold, rights: Rights) -> Option<u64> {
        let key = key(hold, rights)?;
        let file = self.files.get_mut(&key)?;
        file.registrations -= 1;
        if file.registrations > 0 {
            return None;
        }
        self.files.remove(&key).map(|file| file.name)
    }

    /// What is sent to peers of the file of a registration that has one.
    pub(crate) fn find(&self, hold: &Hold, rights: Rights) -> Option<&OwnedFd> {
        let file = self.files.get(&key(hold, rights)?)?;
        Some(&file.fd)
    }
}

fn key(hold: &Hold, rights: Rights) -> Option<(RawFd, bool)> {
    let export = hold.export()?;
    Some((export.fd.as_raw_fd(), rights.has(Rights::WRITE)))
}

#[cfg(test)]
mod tests {
    use moai_memory::Region;

    use super::*;

    #[test]
    fn parts_of_a_file_share_its_name_until_the_last_is_gone() {
        let (first, second) = Region::shared_zeroed(1 << 17).unwrap().split_at(1 << 16);
        let (first, second) = (first.hold(), second.hold());
        let mut exports = Exports::default();
        assert_eq!(exports.begin(&first, Rights::READ), Some((1, 0)));
        assert_eq!(exports.begin(&second, Rights::READ), Some((1, 1 << 16)));
        assert_eq!(exports.begin(&second, Rights::WRITE), Some((2, 1 << 16)));
        assert!(exports.find(&second, Rights::WRITE).is_some());
        assert_eq!(exports.end(&first, Rights::READ), None);
        assert_eq!(exports.end(&second, Rights::READ), Some(1));
        assert_eq!(exports.end(&second, Rights::WRITE), Some(2));
        let host = Region::from_host(vec![0]).hold();
        assert_eq!(exports.begin(&host, Rights::READ), None);
        assert!(exports.find(&host, Rights::READ).is_none());
    }
}
