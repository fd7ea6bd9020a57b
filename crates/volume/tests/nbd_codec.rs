//! The bytes of NBD: what is emitted is parsed again, and nothing that is parsed panics or takes memory unbounded.

use ninefold_volume::nbd::proto::*;
use ninefold_volume::nbd::{Access, Export, Negotiation, Step};
use proptest::prelude::*;

fn command() -> impl Strategy<Value = Command> {
    prop_oneof![
        Just(Command::Read),
        Just(Command::Write),
        Just(Command::Disconnect),
        Just(Command::Flush),
        Just(Command::Trim),
        Just(Command::WriteZeroes),
        (7..=u16::MAX).prop_map(Command::Other),
    ]
}

fn export() -> Export {
    Export { name: "disk".into(), size: 1 << 20, access: Access::ReadWrite }
}

proptest! {
    #[test]
    fn requests_survive(flags: u16, command in command(), cookie: u64, offset: u64, length in 0..=MAX_PAYLOAD) {
        let request = Request { flags, command, cookie, offset, length };
        prop_assert_eq!(Request::parse(&request.emit()), Ok(request));
    }

    #[test]
    fn replies_survive(error: u32, cookie: u64) {
        let reply = SimpleReply { error, cookie };
        prop_assert_eq!(SimpleReply::parse(&reply.emit()), Ok(reply));
    }

    #[test]
    fn options_survive(option: u32, kind: u32, length in 0..=MAX_OPTION) {
        let head = OptionHead { option, length };
        prop_assert_eq!(OptionHead::parse(&head.emit()), Ok(head));
        let head = OptionReplyHead { option, kind, length };
        prop_assert_eq!(OptionReplyHead::parse(&head.emit()), Ok(head));
    }

    #[test]
    fn information_requests_survive(name in "\\PC{0,40}", wanted in prop::collection::vec(any::<u16>(), 0..9)) {
        let request = InfoRequest { name, wanted };
        prop_assert_eq!(InfoRequest::parse(&request.emit()), Ok(request));
    }

    #[test]
    fn an_accepted_request_lies_inside(flags: u16, command in command(), offset: u64, length: u32, size: u64) {
        let request = Request { flags, command, cookie: 0, offset, length };
        let touches = !matches!(command, Command::Flush | Command::Disconnect);
        if request.check(size, true).is_ok() && touches {
            prop_assert!(offset.checked_add(length.into()).unwrap() <= size);
            prop_assert!(!matches!(command, Command::Other(_)));
            prop_assert!(command != Command::Read || length <= MAX_PAYLOAD);
        }
        if matches!(command, Command::Write | Command::Trim | Command::WriteZeroes) {
            prop_assert!(request.check(size, false).is_err());
        }
    }

    #[test]
    fn long_writes_are_refused_from_the_head(length in MAX_PAYLOAD + 1..) {
        let request = Request { flags: 0, command: Command::Write, cookie: 0, offset: 0, length };
        let refused = matches!(Request::parse(&request.emit()), Err(ProtoError::TooLong { .. }));
        prop_assert!(refused);
    }

    #[test]
    fn any_haggling_is_answered_in_bounds(
        options in prop::collection::vec((0u32..12, prop::collection::vec(any::<u8>(), 0..64), any::<bool>()), 0..100)
    ) {
        let mut negotiation = Negotiation::new(export());
        for (count, (option, data, busy)) in options.into_iter().enumerate() {
            let mut out = Vec::new();
            let step = negotiation.answer(option, &data, busy, &mut out);
            prop_assert!(out.len() < 512);
            prop_assert!(!(busy && step == Step::Transmit));
            prop_assert!(count < 64 || step == Step::Close);
            if step != Step::Haggle {
                break;
            }
        }
    }

    #[test]
    fn bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
        let _ = InfoRequest::parse(&bytes);
        if let Some(head) = bytes.first_chunk() { let _ = Request::parse(head); }
        if let Some(head) = bytes.first_chunk() { let _ = SimpleReply::parse(head); }
        if let Some(head) = bytes.first_chunk() { let _ = OptionHead::parse(head); }
        if let Some(head) = bytes.first_chunk() { let _ = OptionReplyHead::parse(head); }
    }
}

#[test]
fn clients_without_fixed_newstyle_are_refused() {
    for flags in [0u32, 2, 4 | 1, 0x8000_0001] {
        assert!(Negotiation::new(export()).client_flags(flags.to_be_bytes()).is_err(), "{flags}");
    }
    assert!(Negotiation::new(export()).client_flags(3u32.to_be_bytes()).is_ok());
}
