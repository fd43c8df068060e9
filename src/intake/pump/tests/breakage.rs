//! Frames in pieces, frames that are none, and every way to break off.

use super::*;

#[tokio::test(start_paused = true)]
async fn frames_cut_anywhere_make_the_same_items() {
    let bytes = [
        keepalive(50, false),
        transaction(100),
        begin(200, 701),
        insert("a", "shop.pay"),
        insert("b", "shop.pay"),
        keepalive(150, false),
        commit(200, 210),
        keepalive(300, true),
        words(b'N', "00000", "a notice"),
        transaction(400),
    ]
    .concat();
    let expected = [
        "alive 50",
        "begin 100",
        "task row-100 0",
        "commit 105",
        "begin 200",
        "task a 0",
        "task b 1",
        "alive 150",
        "commit 210",
        "alive 300",
        "begin 400",
        "task row-400 0",
        "commit 405",
    ];
    for cut in 0..=bytes.len() {
        let mut bench = start().await;
        bench.server.send(&bytes[..cut]).await;
        tokio::time::sleep(ms(1)).await;
        bench.server.send(&bytes[cut..]).await;
        let items = bench.items(expected.len()).await;
        assert_eq!(items, expected, "cut at {cut}");
    }
    // Byte by byte.
    let mut bench = start().await;
    let (server, batches) = (&mut bench.server, &mut bench.batches);
    let taking = async {
        let mut items = Vec::new();
        while items.len() < expected.len() {
            let batch = batches.recv().await.expect("a batch");
            items.extend(batch.items.iter().map(told));
        }
        items
    };
    let ((), items) = tokio::join!(server.trickle(&bytes), taking);
    assert_eq!(items, expected);
}

#[tokio::test(start_paused = true)]
async fn what_the_protocol_does_not_have_stops_and_nothing_of_it_is_handed_over() {
    let stop = Policy::Stop(Stop::Runtime);
    let mut bad: Vec<(Vec<u8>, Policy)> = Vec::new();
    for tag in 0..=255u8 {
        if !b"wk".contains(&tag) {
            bad.push((message(b'd', &[tag; 40]), stop));
        }
        // The other letters of protocol 1 are skipped, or fail for being short.
        if !b"ORYBCIUDTM".contains(&tag) {
            bad.push((xlog(&[tag, 0, 0, 0]), stop));
        }
    }
    for whole in [
        begin(500, 1),
        commit(500, 505),
        relation(),
        insert("x", "y"),
        keepalive(9, true),
    ] {
        let payload = &whole[5..];
        for end in 0..payload.len() {
            bad.push((message(b'd', &payload[..end]), stop));
        }
        bad.push((message(b'd', &[payload, b"!"].concat()), stop));
    }
    bad.push((commit(500, 505), stop));
    bad.push((insert("x", "y"), stop));
    bad.push(([begin(500, 1), begin(600, 2)].concat(), stop));
    bad.push(([begin(500, 1), commit(501, 505)].concat(), stop));
    bad.push(([begin(500, 1), xlog(b"I\0\0\0\x09N\0\0")].concat(), stop));
    for (bytes, policy) in bad {
        let mut bench = start().await;
        bench.server.send(&transaction(100)).await;
        assert_eq!(
            bench.items(3).await,
            ["begin 100", "task row-100 0", "commit 105"]
        );
        bench
            .server
            .send(&[keepalive(300, false), bytes.clone()].concat())
            .await;
        assert!(bench.batches.recv().await.is_none(), "{bytes:?}");
        let error = bench.error().await;
        assert_eq!(error.policy(), policy, "{bytes:?}: {error}");
    }
}

#[tokio::test(start_paused = true)]
async fn how_a_session_breaks_decides_what_is_done() {
    use Stop::{Configuration, PublicationLost, Runtime, SlotLost};
    for (last, policy) in [
        (words(b'E', "57P01", "terminating"), Policy::Reconnect),
        (words(b'E', "53200", "out of memory"), Policy::Reconnect),
        (
            words(b'E', "58P01", "WAL segment removed"),
            Policy::Stop(SlotLost),
        ),
        (
            words(b'E', "42704", "publication does not exist"),
            Policy::Stop(PublicationLost),
        ),
        (
            words(b'N', "55000", "skipped loading publication"),
            Policy::Stop(PublicationLost),
        ),
        (words(b'E', "XX000", "damaged"), Policy::Stop(Runtime)),
        (message(b'c', b""), Policy::Reconnect),
        (message(b'C', b"COPY 0\0"), Policy::Reconnect),
        (message(b'Z', b"I"), Policy::Stop(Runtime)),
        // A table without the column `task`: the operator's.
        (
            xlog(b"R\0\0\x40\x07aftercommit\0outbox\0d\0\x01\0id\0\0\0\0\x19\xFF\xFF\xFF\xFF"),
            Policy::Stop(Configuration),
        ),
        // The header of a frame that is never to be had in full.
        (b"d\x7F\xFF\xFF\xFF".to_vec(), Policy::Stop(Runtime)),
        (b"d\0\0\0\x03".to_vec(), Policy::Stop(Runtime)),
    ] {
        let mut bench = start().await;
        bench
            .server
            .send(&[transaction(100), last.clone()].concat())
            .await;
        let error = bench.error().await;
        assert_eq!(error.policy(), policy, "{last:?}: {error}");
    }
    // Closed, or half closed, between frames and inside of one.
    let bytes = transaction(100);
    for end in [bytes.len(), bytes.len() - 3, 2, 0] {
        for half in [false, true] {
            let mut bench = start().await;
            bench.server.send(&bytes[..end]).await;
            match half {
                true => bench.server.half_close().await,
                false => bench.server = Walsender::new(duplex(1).0),
            }
            let error = bench.error().await;
            assert_eq!(error.policy(), Policy::Reconnect, "{error}");
        }
    }
}
