//! Batches of datagrams over sockets of loopback.

use super::*;
use rustix::fd::AsFd;
use std::net::UdpSocket;
use std::time::Duration;

/// Returns two sockets of loopback that are connected to each other.
fn pair() -> [UdpSocket; 2] {
    let sockets = [(); 2].map(|()| UdpSocket::bind("127.0.0.1:0").unwrap());
    sockets[0].connect(sockets[1].local_addr().unwrap()).unwrap();
    sockets[1].connect(sockets[0].local_addr().unwrap()).unwrap();
    sockets.iter().for_each(|socket| socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap());
    sockets
}

fn batch_of(datagrams: &[&[u8]]) -> Batch {
    let mut batch = Batch::new(datagrams.len());
    datagrams.iter().enumerate().for_each(|(index, bytes)| batch.set_bytes(index, bytes));
    batch
}

fn received(socket: &UdpSocket) -> Vec<u8> {
    let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
    let count = socket.recv(&mut buffer).unwrap();
    buffer.truncate(count);
    buffer
}

/// Checks that datagrams of these lengths arrive whole and in order, and whether they can go in one send.
fn check_lengths(lengths: &[usize], is_segmentable: bool) {
    let [sender, receiver] = pair();
    let datagrams: Vec<Vec<u8>> =
        lengths.iter().enumerate().map(|(index, &length)| vec![index as u8; length]).collect();
    let batch = batch_of(&datagrams.iter().map(Vec::as_slice).collect::<Vec<_>>());
    let indices: Vec<usize> = (0..lengths.len()).collect();
    assert_eq!(batch.is_segmentable(&indices), is_segmentable, "{lengths:?}");
    assert_eq!(batch.bytes(&indices), lengths.iter().sum::<usize>() as u64);
    let sent = batch.send_connected(sender.as_fd(), &indices);
    assert_eq!(sent, (lengths.len(), None), "{lengths:?}");
    datagrams.iter().for_each(|datagram| assert!(received(&receiver) == *datagram, "{lengths:?}"));
}

#[test]
fn datagrams_of_one_length_are_one_send_and_the_last_may_be_shorter() {
    check_lengths(&[100], true);
    check_lengths(&[100, 100, 100], true);
    check_lengths(&[100, 100, 1], true);
    check_lengths(&[100, 100, 101], false);
    check_lengths(&[100, 99, 100], false);
    check_lengths(&[100, 0], false);
    check_lengths(&[0, 0], false);
    check_lengths(&[30_000, 30_000, 30_000], false);
}

#[test]
fn a_refused_datagram_is_reported_with_the_number_of_datagrams_before_it() {
    let [sender, receiver] = pair();
    let large = vec![0; DATAGRAM_BYTES_MAX];
    let batch = batch_of(&[b"first", &large, b"last"]);
    let sent = batch.send_connected(sender.as_fd(), &[0, 1, 2]);
    assert_eq!(sent, (1, Some(Errno::MSGSIZE)));
    assert_eq!(received(&receiver), b"first");
}

#[test]
fn bytes_are_inserted_before_a_datagram_and_removed() {
    let mut batch = batch_of(&[b"one", b"two"]);
    batch.prepend(0, b"header ");
    assert_eq!((batch.bytes_of(0), batch.bytes_of(1)), (&b"header one"[..], &b"two"[..]));
    batch.strip(0, 7);
    batch.bytes_of_mut(0)[0] = b'O';
    assert_eq!((batch.bytes_of(0), batch.len(0)), (&b"One"[..], 3));
    batch.strip(1, 3);
    assert_eq!(batch.bytes_of(1), b"");
}

#[test]
fn a_datagram_is_cut_to_its_buffer() {
    let large = vec![1; DATAGRAM_BYTES_MAX + 1];
    let mut batch = batch_of(&[b"", b"next"]);
    batch.set_bytes(0, &large);
    batch.prepend(0, &[2; STRIDE - DATAGRAM_BYTES_MAX]);
    assert_eq!((batch.len(0), batch.bytes_of(1)), (STRIDE, &b"next"[..]));
}

#[test]
fn datagrams_are_received_behind_the_datagrams_in_the_batch() {
    let [sender, receiver] = pair();
    receiver.set_nonblocking(true).unwrap();
    let mut batch = Batch::new(4);
    batch.set_bytes(0, b"there");
    let mut receive = |from| batch.receive(receiver.as_fd(), from, Senders::Received, Local::Fixed);
    assert_eq!(receive(1), Ok(0), "no datagram has arrived");
    for number in 0..4_u8 {
        sender.send(&[number]).unwrap();
    }
    assert_eq!(receive(1), Ok(3), "there is room for three");
    assert_eq!((batch.bytes_of(0), batch.bytes_of(3)), (&b"there"[..], &[2][..]));
    assert_eq!(batch.sender(1), sender.local_addr().ok());
    assert_eq!((batch.local(1), batch.ttl(1), batch.is_broadcast_or_multicast(1)), (None, None, false));
}

#[test]
fn a_refusal_of_an_earlier_send_is_an_error_of_the_receive() {
    let [sender, receiver] = pair();
    receiver.connect("127.0.0.1:9").unwrap();
    sender.send(b"refused").unwrap();
    sender.set_nonblocking(true).unwrap();
    let received = Batch::new(1).receive(sender.as_fd(), 0, Senders::Ignored, Local::Fixed);
    assert_eq!(received, Err(Errno::CONNREFUSED));
}

#[test]
fn the_destination_and_ttl_of_a_datagram_are_received() {
    let receiver = UdpSocket::bind("0.0.0.0:0").unwrap();
    for name in [libc::IP_PKTINFO, libc::IP_RECVTTL] {
        crate::io::sys::set_flag(receiver.as_fd(), (libc::IPPROTO_IP, name)).unwrap();
    }
    let port = receiver.local_addr().unwrap().port();
    let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
    sender.set_ttl(7).unwrap();
    sender.send_to(b"hello", ("127.0.0.3", port)).unwrap();
    let mut batch = Batch::new(1);
    batch.set_ttls(Ttls::Received);
    assert_eq!(batch.receive(receiver.as_fd(), 0, Senders::Received, Local::Each), Ok(1));
    let local = IpAddr::from([127, 0, 0, 3]);
    assert_eq!(
        (batch.local(0), batch.is_broadcast_or_multicast(0), batch.ttl(0)),
        (Some(local), false, Some(7))
    );

    // The response comes from that address.
    let to = batch.sender(0).unwrap();
    batch.set_destination(0, to, Some(local));
    assert_eq!(batch.send_addressed(receiver.as_fd(), 0..1).taken, 1);
    let (_, from) = sender.recv_from(&mut [0; 16]).unwrap();
    assert_eq!(from, SocketAddr::new(local, port));
}

#[test]
fn datagrams_behind_a_datagram_that_cannot_be_sent_are_sent() {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let [_, receiver] = pair();
    let receiver_address = receiver.local_addr().unwrap();
    receiver.connect(socket.local_addr().unwrap()).unwrap();
    let mut batch = batch_of(&[b"first", b"lost", b"last"]);
    // Port 0 is not a valid destination (RFC 768).
    for (index, to) in
        [receiver_address, "127.0.0.1:0".parse().unwrap(), receiver_address].into_iter().enumerate()
    {
        batch.set_destination(index, to, None);
    }
    let sent = batch.send_addressed(socket.as_fd(), 0..3);
    assert_eq!(sent, Sent { taken: 2, is_full: false, failed: 1 });
    assert_eq!([received(&receiver), received(&receiver)], [b"first".to_vec(), b"last".to_vec()]);
}
