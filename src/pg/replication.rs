//! What travels inside CopyData while the server streams.
//!
//! Documentation: chapter "Streaming Replication Protocol". The server sends XLogData and keepalives; the client sends
//! standby status updates.

use bytes::{BufMut, BytesMut};

use super::{ConfirmedLsn, Cursor, DecodeError, Lsn, Timestamp};

/// What a walsender sends.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum ReplicationMessage<'a> {
    /// `w`: one message of the output plugin.
    XLogData(XLogData<'a>),
    /// `k`: the server is alive.
    Keepalive(Keepalive),
}

/// One message of the output plugin, and where in the log it comes from.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct XLogData<'a> {
    /// Place of the change. For a row it is no boundary: it must never be confirmed.
    pub wal_start: Lsn,
    /// End of the log on the server, as far as the walsender knows it.
    pub wal_end: Lsn,
    /// The server's clock.
    pub sent_at: Timestamp,
    /// The message of the output plugin.
    pub data: &'a [u8],
}

impl XLogData<'_> {
    /// Bytes before `data`: the tag, two positions, and a time.
    pub const HEADER_LEN: usize = 25;
}

/// A primary keepalive message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Keepalive {
    /// How far the walsender has read the log; everything that it had to send up to there is sent.
    pub wal_end: Lsn,
    /// The server's clock.
    pub sent_at: Timestamp,
    /// The server wants a status update at once, and may close the connection without one.
    pub reply_requested: bool,
}

impl<'a> ReplicationMessage<'a> {
    /// Reads the payload of one CopyData frame.
    ///
    /// # Errors
    /// An unknown tag, a short message, or bytes left over after a keepalive.
    pub fn decode(payload: &'a [u8]) -> Result<ReplicationMessage<'a>, DecodeError> {
        let mut cursor = Cursor::new(payload);
        match cursor.u8("replication message tag")? {
            b'w' => Ok(ReplicationMessage::XLogData(XLogData {
                wal_start: Lsn(cursor.u64("XLogData start")?),
                wal_end: Lsn(cursor.u64("XLogData end")?),
                sent_at: Timestamp(cursor.i64("XLogData time")?),
                data: cursor.rest(),
            })),
            b'k' => {
                let keepalive = Keepalive {
                    wal_end: Lsn(cursor.u64("keepalive end")?),
                    sent_at: Timestamp(cursor.i64("keepalive time")?),
                    reply_requested: cursor.u8("keepalive reply flag")? != 0,
                };
                cursor.end("keepalive")?;
                Ok(ReplicationMessage::Keepalive(keepalive))
            }
            tag => Err(DecodeError::tag(tag, "replication message tag", 0)),
        }
    }
}

/// A standby status update: the only way in which a slot moves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StatusUpdate {
    /// Everything below it is settled; the server may forget it. `0/0` gives no information.
    pub confirmed: ConfirmedLsn,
    /// The client's clock.
    pub sent_at: Timestamp,
    /// Asks the server for a keepalive.
    pub reply_requested: bool,
}

impl StatusUpdate {
    /// Appends the whole CopyData frame: `d`, its length, and the update.
    ///
    /// Written, flushed and applied are the same position: nothing that we have only received is of any use to the
    /// server, and only the flushed one moves a logical slot.
    pub fn encode(&self, out: &mut BytesMut) {
        const PAYLOAD_LEN: usize = 1 + 3 * 8 + 8 + 1;
        let confirmed = self.confirmed.lsn().0;
        out.reserve(1 + 4 + PAYLOAD_LEN);
        out.put_u8(b'd');
        out.put_u32(4 + PAYLOAD_LEN as u32);
        out.put_u8(b'r');
        out.put_u64(confirmed);
        out.put_u64(confirmed);
        out.put_u64(confirmed);
        out.put_i64(self.sent_at.0);
        out.put_u8(u8::from(self.reply_requested));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const XLOG_DATA: &[u8] =
        b"w\0\0\0\0\x03\x02\xE8\x88\0\0\0\0\x03\x02\xEB\xA0\0\x03\x03\xD3\x28\x9E\xF6\xA7B..";
    const KEEPALIVE: &[u8] = b"k\0\0\0\x16\xB3\x74\xD8\x48\0\x03\x03\xD3\x28\x9E\xF6\xA7\x01";

    fn error(payload: &[u8]) -> String {
        match ReplicationMessage::decode(payload) {
            Ok(_) => panic!("{payload:?} was read"),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn reads_xlog_data() {
        let Ok(ReplicationMessage::XLogData(message)) = ReplicationMessage::decode(XLOG_DATA)
        else {
            panic!("no XLogData");
        };
        assert_eq!(message.wal_start, Lsn(0x302_E888));
        assert_eq!(message.wal_end, Lsn(0x302_EBA0));
        assert_eq!(message.sent_at, Timestamp(0x0003_03D3_289E_F6A7));
        assert_eq!(message.data, b"B..");
        assert_eq!(&XLOG_DATA[XLogData::HEADER_LEN..], message.data);
    }

    #[test]
    fn reads_keepalives() {
        for (flag, reply_requested) in [(0, false), (1, true)] {
            let mut payload = KEEPALIVE.to_vec();
            payload[17] = flag;
            assert!(
                ReplicationMessage::decode(&payload)
                    == Ok(ReplicationMessage::Keepalive(Keepalive {
                        wal_end: "16/B374D848".parse().unwrap(),
                        sent_at: Timestamp(0x0003_03D3_289E_F6A7),
                        reply_requested,
                    }))
            );
        }
    }

    #[test]
    fn refuses_what_is_short_or_long_or_unknown() {
        for len in 0..XLogData::HEADER_LEN {
            assert!(error(&XLOG_DATA[..len]).contains("ends inside of"), "{len}");
        }
        for len in 0..KEEPALIVE.len() {
            assert!(error(&KEEPALIVE[..len]).contains("ends inside of"), "{len}");
        }
        let long = [KEEPALIVE, b"\0"].concat();
        assert_eq!(
            error(&long),
            "bytes are left over after keepalive, at byte 18"
        );
        assert_eq!(
            error(b"x"),
            "unexpected replication message tag 'x', at byte 0"
        );
    }

    #[test]
    fn a_status_update_says_one_position_three_times() {
        let mut out = BytesMut::from(&b"before"[..]);
        StatusUpdate {
            confirmed: ConfirmedLsn::vouch(Lsn(0x16_B374_D848)),
            sent_at: Timestamp(0x0003_03D3_289E_F6A7),
            reply_requested: true,
        }
        .encode(&mut out);
        let lsn = b"\0\0\0\x16\xB3\x74\xD8\x48".as_slice();
        let time = b"\0\x03\x03\xD3\x28\x9E\xF6\xA7".as_slice();
        let expected = [b"befored\0\0\0\x26r", lsn, lsn, lsn, time, b"\x01"].concat();
        assert_eq!(out, expected);
    }
}
