//! Packets that are lost while the program is attached, replaced and detached, counted by sequence numbers.

use crate::frames::Wire;
use crate::harness::{add_pair, alone, open, set};
use evener_core::spec::XdpMode;
use evener_xdp::attach::Change;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

const PORT: u16 = 4000;

/// Ends the sender, also if the test fails.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Sends packets from `eth1` while a function changes something at `eth0`. Returns the numbers of sent and of lost
/// packets.
fn during(change: impl FnOnce()) -> (u32, u32) {
    let (sender, receiver) = (Wire::new("eth1"), Wire::new("eth0"));
    let (sent, is_over) = (AtomicU32::new(0), AtomicBool::new(false));
    let received = std::thread::scope(|scope| {
        let receiving =
            scope.spawn(|| std::iter::from_fn(|| receiver.receive(PORT)).collect::<BTreeSet<_>>());
        let sending = scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                sender.send(PORT, sent.load(Ordering::Relaxed));
                sent.fetch_add(1, Ordering::Relaxed);
                std::thread::sleep(Duration::from_micros(20));
            }
        });
        let end = End(&is_over);
        let until = |count: u32| {
            let begin = sent.load(Ordering::Relaxed);
            while sent.load(Ordering::Relaxed) < begin + count {
                std::thread::sleep(Duration::from_millis(1));
            }
        };
        until(1000);
        change();
        until(1000);
        drop(end);
        sending.join().unwrap();
        receiving.join().unwrap()
    });
    let sent = sent.into_inner();
    let lost = sent - u32::try_from(received.len()).unwrap();
    (sent, lost)
}

#[test]
fn replacing_the_program_loses_no_packet() {
    alone(|| {
        add_pair();
        let mut first = open(1024);
        let (sent, lost) = during(|| drop(set(&mut first, "eth0", XdpMode::Native).unwrap()));
        println!("attached in native mode: {lost} of {sent} packets lost");
        drop(first);

        let mut second = open(2048);
        let (sent, lost) = during(|| {
            assert_eq!(set(&mut second, "eth0", XdpMode::Native).unwrap().change, Change::Replaced);
        });
        println!("replaced: {lost} of {sent} packets lost");
        assert_eq!(lost, 0, "packets lost when the program was replaced");

        let (sent, lost) = during(|| drop(set(&mut second, "eth0", XdpMode::Generic).unwrap()));
        println!("native mode to generic mode: {lost} of {sent} packets lost");
        let (sent, lost) = during(|| drop(second));
        println!("process ended: {lost} of {sent} packets lost");
        assert_eq!(lost, 0, "packets lost when the process ended");
        let path = std::path::Path::new(crate::harness::PIN);
        let (sent, lost) = during(|| drop(evener_xdp::installation::detach(path, None).unwrap()));
        println!("detached: {lost} of {sent} packets lost");
    });
}
