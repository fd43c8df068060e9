//! What is inside CopyData: any bytes are read or refused, and what was read is what was there.

use aftercommit::pg::replication::{Keepalive, ReplicationMessage, StatusUpdate, XLogData};
use aftercommit::pg::{ConfirmedLsn, Cursor, Lsn, Timestamp};
use bytes::BytesMut;

/// Reads any bytes, writes what was read, and compares.
pub(super) fn check(input: &[u8]) {
    match ReplicationMessage::decode(input) {
        Err(error) => assert!(error.offset() <= input.len()),
        Ok(ReplicationMessage::XLogData(XLogData {
            wal_start,
            wal_end,
            sent_at,
            data,
        })) => {
            let mut written = b"w".to_vec();
            written.extend(wal_start.0.to_be_bytes());
            written.extend(wal_end.0.to_be_bytes());
            written.extend(sent_at.0.to_be_bytes());
            written.extend(data);
            assert_eq!(written, input);
            assert_eq!(input.len() - data.len(), XLogData::HEADER_LEN);
        }
        Ok(ReplicationMessage::Keepalive(Keepalive {
            wal_end,
            sent_at,
            reply_requested,
        })) => {
            let mut written = b"k".to_vec();
            written.extend(wal_end.0.to_be_bytes());
            written.extend(sent_at.0.to_be_bytes());
            // Any byte but zero is a yes.
            assert_eq!(input.last().map(|flag| *flag != 0), Some(reply_requested));
            assert_eq!(Some(written.as_slice()), input.get(..17));
            assert_eq!(input.len(), 18);
            check_status_update(wal_end, sent_at, reply_requested);
        }
    }
}

fn check_status_update(lsn: Lsn, sent_at: Timestamp, reply_requested: bool) {
    let mut frame = BytesMut::new();
    StatusUpdate {
        confirmed: ConfirmedLsn::vouch(lsn),
        sent_at,
        reply_requested,
    }
    .encode(&mut frame);
    let mut cursor = Cursor::new(&frame);
    assert_eq!(cursor.u8("tag"), Ok(b'd'));
    assert_eq!(cursor.u32("length"), Ok(frame.len() as u32 - 1));
    assert_eq!(cursor.u8("tag"), Ok(b'r'));
    for _ in 0..3 {
        assert_eq!(cursor.u64("position"), Ok(lsn.0));
    }
    assert_eq!(cursor.i64("time"), Ok(sent_at.0));
    assert_eq!(cursor.u8("flag"), Ok(u8::from(reply_requested)));
    assert_eq!(cursor.end("update"), Ok(()));
}
