//! Codes of less than a byte, packed and taken apart: the definition, one code at a time, and loops for the packings
//! that whole caches are made of.

use crate::{
    cpu::{
        level::Level,
        number::{pack_nibbles, unpack_nibbles},
    },
    number::Number,
    scheme::Packing,
};

/// The byte and the lowest bit where code `i` of `n` begins, for packings of less than a byte a code.
fn place(packing: Packing, number: Number, i: usize, n: usize) -> (usize, usize) {
    match packing {
        Packing::Bytes => (i * number.bytes(), 0),
        Packing::Dense => {
            let bit = i * number.bits() as usize;
            (bit / 8, bit % 8)
        }
        Packing::Halves => (i % (n / 2), if i < n / 2 { 0 } else { 4 }),
        // The four bytes hold elements 0 2 4 6 1 3 5 7, from the lowest nibble.
        Packing::Octets => {
            let nibble = i % 8 / 2 + i % 2 * 4;
            (i / 8 * 4 + nibble / 2, nibble % 2 * 4)
        }
        Packing::FifthBits => {
            let (byte, bit) = place(Packing::Halves, number, i, n);
            (4 + byte, bit)
        }
    }
}

/// One code a byte. Codes of whole bytes are not packed and not asked for here.
pub(crate) fn unpack(packing: Packing, number: Number, bytes: &[u8], codes: &mut [u8]) {
    let (n, bits) = (codes.len(), number.bits() as usize);
    for (i, code) in codes.iter_mut().enumerate() {
        let (byte, bit) = place(packing, number, i, n);
        let next = bytes.get(byte + 1).copied().unwrap_or(0);
        let both = u16::from_le_bytes([bytes[byte], next]) >> bit;
        *code = match packing {
            Packing::FifthBits => (both & 15) as u8 | (bytes[i / 8] >> (i % 8) & 1) << 4,
            Packing::Bytes => bytes[byte],
            _ => (both & ((1 << bits) - 1)) as u8,
        };
    }
}

/// The packed bytes of codes, every one of them written.
pub(crate) fn pack(packing: Packing, number: Number, codes: &[u8], bytes: &mut [u8]) {
    bytes.fill(0);
    for (i, code) in codes.iter().enumerate() {
        let (byte, bit) = place(packing, number, i, codes.len());
        let low = if packing == Packing::FifthBits {
            code & 15
        } else {
            *code
        };
        let both = (u16::from(low) << bit).to_le_bytes();
        bytes[byte] |= both[0];
        if both[1] != 0 {
            bytes[byte + 1] |= both[1];
        }
        if packing == Packing::FifthBits {
            bytes[i / 8] |= (code >> 4) << (i % 8);
        }
    }
}

/// As [`unpack`], by loops where there is one.
pub(crate) fn unpack_fast(
    level: Level,
    packing: Packing,
    number: Number,
    bytes: &[u8],
    codes: &mut [u8],
) {
    match packing {
        Packing::Dense if number.bits() == 4 => unpack_nibbles(level, bytes, codes),
        Packing::Halves => {
            let (low, high) = codes.split_at_mut(bytes.len());
            for ((low, high), byte) in low.iter_mut().zip(high).zip(bytes) {
                (*low, *high) = (byte & 15, byte >> 4);
            }
        }
        Packing::FifthBits => {
            let (fifth, nibbles) = bytes.split_at(4);
            unpack_fast(level, Packing::Halves, Number::Uint4, nibbles, codes);
            for (codes, bits) in codes.chunks_mut(8).zip(fifth) {
                for (j, code) in codes.iter_mut().enumerate() {
                    *code |= (bits >> j & 1) << 4;
                }
            }
        }
        _ => unpack(packing, number, bytes, codes),
    }
}

/// As [`pack`], by loops where there is one.
pub(crate) fn pack_fast(
    level: Level,
    packing: Packing,
    number: Number,
    codes: &[u8],
    bytes: &mut [u8],
) {
    match packing {
        Packing::Dense if number.bits() == 4 => pack_nibbles(level, codes, bytes),
        Packing::Halves => {
            let (low, high) = codes.split_at(bytes.len());
            for ((low, high), byte) in low.iter().zip(high).zip(bytes) {
                *byte = low & 15 | high << 4;
            }
        }
        Packing::FifthBits => {
            let (fifth, nibbles) = bytes.split_at_mut(4);
            pack_fast(level, Packing::Halves, Number::Uint4, codes, nibbles);
            for (codes, bits) in codes.chunks(8).zip(fifth) {
                *bits = codes
                    .iter()
                    .rev()
                    .fold(0, |bits, code| bits << 1 | code >> 4);
            }
        }
        _ => pack(packing, number, codes, bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packed_codes_come_back_from_every_packing() {
        for (packing, number) in [
            (Packing::Bytes, Number::Uint8),
            (Packing::Dense, Number::Uint4),
            (Packing::Dense, Number::Uint3),
            (Packing::Dense, Number::Uint2),
            (Packing::Halves, Number::Uint4),
            (Packing::Octets, Number::Uint4),
            (Packing::FifthBits, Number::Uint5),
        ] {
            let codes: Vec<u8> = (0..32u32)
                .map(|i| ((i * 37 + 11) & ((1 << number.bits()) - 1)) as u8)
                .collect();
            let mut bytes = vec![0xAA; packing.bytes(number, 32) as usize];
            pack(packing, number, &codes, &mut bytes);
            let mut back = vec![0; 32];
            unpack(packing, number, &bytes, &mut back);
            assert_eq!(back, codes, "{packing:?} {number:?}");
            if packing != Packing::Bytes {
                for level in Level::available() {
                    let (mut fast, mut back) = (vec![0x55; bytes.len()], vec![0; 32]);
                    pack_fast(level, packing, number, &codes, &mut fast);
                    unpack_fast(level, packing, number, &bytes, &mut back);
                    assert_eq!(
                        (fast, back),
                        (bytes.clone(), codes.clone()),
                        "{packing:?} {number:?} {level:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn orders_are_those_that_engines_write() {
        let codes: Vec<u8> = (0..8).collect();
        let packed = |packing| {
            let mut bytes = [0; 4];
            pack(packing, Number::Uint4, &codes, &mut bytes);
            bytes
        };
        assert_eq!(packed(Packing::Dense), [0x10, 0x32, 0x54, 0x76]);
        assert_eq!(packed(Packing::Halves), [0x40, 0x51, 0x62, 0x73]);
        assert_eq!(packed(Packing::Octets), [0x20, 0x64, 0x31, 0x75]);
        let mut bytes = [0; 3];
        pack(Packing::Dense, Number::Uint3, &codes, &mut bytes);
        let word = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], 0]);
        assert!((0..8).all(|i| word >> (3 * i) & 7 == i));
    }
}
