//! The contract of the XDP program is the same in C and in Rust. The build script derives both tables from the
//! header, so a struct or field that one side lacks does not compile.

use evener_xdp::contract;
use evener_xdp_native::layout;

include!(concat!(env!("OUT_DIR"), "/layout.rs"));

/// Returns the size of a field.
const fn size_of_field<S, F>(_: fn(&S) -> *const F) -> usize {
    size_of::<F>()
}

#[test]
fn structs_have_the_same_sizes_and_offsets_in_c_and_in_rust() {
    // SAFETY: the build script made both tables from one list.
    let numbers = unsafe { layout::numbers(LAYOUT.len()) };
    assert!(LAYOUT.len() > 200, "the build script found the structs");
    for ((name, rust), c) in LAYOUT.iter().zip(numbers) {
        assert_eq!(rust, c, "{name}");
    }
}

#[test]
fn constants_have_the_same_values_in_c_and_in_rust() {
    // SAFETY: the build script made both tables from one list.
    let constants = unsafe { layout::constants(CONSTANTS.len()) };
    assert!(CONSTANTS.len() > 80, "the build script found the constants");
    for ((name, rust), c) in CONSTANTS.iter().zip(constants) {
        assert_eq!(rust, c, "{name}");
    }
}
