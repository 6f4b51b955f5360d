//! What the driver's errors mean to callers.

use mongodb::error::{Error as DriverError, ErrorKind as Driver, WriteFailure};
use terrace_core::{Error, ErrorKind};

/// Somebody else has a row with this key.
const DUPLICATE: i32 = 11_000;

/// Names in a document that the server does not take: `DollarPrefixedFieldName`,
/// `InvalidDBRef`, `EmptyFieldName`, `DottedFieldName`, `BSONObjectTooLarge`, `Overflow`.
const UNFIT: [i32; 6] = [52, 53, 55, 56, 57, 10_334];

/// The user may not, or is not known.
const FORBIDDEN: [i32; 2] = [13, 18];

/// Of calls that were ended on their way, as by a change of the primary: `HostUnreachable`, `HostNotFound`,
/// `MaxTimeMSExpired`, `WriteConcernFailed`, `NetworkTimeout`, `ShutdownInProgress`, `PrimarySteppedDown`,
/// `ExceededTimeLimit`, `SocketException`, `InterruptedAtShutdown`, `Interrupted`,
/// `InterruptedDueToReplStateChange`.
const UNCERTAIN: [i32; 12] = [6, 7, TOO_LONG, 64, 89, 91, 189, 262, 9001, 11_600, 11_601, 11_602];

/// The server was told how long a question may take.
const TOO_LONG: i32 = 50;

const TOOK_LONG: &str = "the document server took too long to look through its documents; ask by words, \
                         or for fewer keys";

/// Whether a row was refused because there is one with its key.
pub(super) fn is_duplicate(error: &DriverError) -> bool {
    code(error) == Some(DUPLICATE)
}

/// Of a call that changes nothing.
pub(super) fn of_read(error: DriverError) -> Error {
    match code(&error) {
        Some(TOO_LONG) => Error::new(ErrorKind::DeadlineExceeded, TOOK_LONG).caused_by(error),
        Some(code) => refused(code).caused_by(error),
        None => unreachable_server().caused_by(error),
    }
}

/// Of a call that may have changed something.
pub(super) fn of_write(error: DriverError) -> Error {
    // A pool that is cleared interrupts connections in use, too: what was sent on one may be applied.
    let never_left = matches!(&*error.kind, Driver::ServerSelection { .. } | Driver::Shutdown)
        || matches!(&*error.kind, Driver::Io(io)
        if io.kind() == std::io::ErrorKind::ConnectionRefused);
    match code(&error) {
        Some(code) if !UNCERTAIN.contains(&code) => refused(code).caused_by(error),
        None if never_left => unreachable_server().caused_by(error),
        _ => {
            let message = "the document server did not confirm the write; read the document to see \
                           whether it was applied";
            Error::new(ErrorKind::OutcomeUnknown, message).caused_by(error)
        }
    }
}

/// What the server said when it refused, and applied nothing.
fn refused(code: i32) -> Error {
    let (kind, message) = if UNFIT.contains(&code) {
        let message = "the document server does not take this document: a name in it, or its size; \
                       MongoDB 5 or newer takes all names";
        (ErrorKind::InvalidInput, message)
    } else if FORBIDDEN.contains(&code) {
        let message = "the document server does not let this user in, or do this; check the user, the \
                       password, and that it may read and write the database";
        (ErrorKind::Unavailable, message)
    } else {
        (ErrorKind::Unavailable, "the document server refused the call; the log says why")
    };
    Error::new(kind, message)
}

/// What the server gave as the reason; nothing when the call may have been applied all the same.
fn code(error: &DriverError) -> Option<i32> {
    match &*error.kind {
        Driver::Authentication { .. } => Some(FORBIDDEN[1]),
        Driver::Command(command) => Some(command.code),
        Driver::Write(WriteFailure::WriteError(write)) => Some(write.code),
        _ => None,
    }
}

/// The server cannot be reached, and nothing was applied.
pub(super) fn unreachable_server() -> Error {
    Error::new(ErrorKind::Unavailable, "the document server cannot be reached; try again later")
}

/// Bytes that are no BSON.
pub(super) fn bson(error: mongodb::bson::error::Error) -> Error {
    corrupt("data").caused_by(error)
}

/// A field of a row is not what Terrace writes.
pub(super) fn corrupt(field: &'static str) -> Error {
    Error::new(ErrorKind::Corrupt, "a stored document is damaged; restore it from a backup")
        .with("field", field)
}

/// A row that another program has written, of which no document can be made.
pub(super) fn no_document() -> Error {
    let message = "what is stored is no document, or larger than 1 MiB, as only another program can write \
                   it; write it anew or delete it";
    Error::new(ErrorKind::Corrupt, message)
}

/// What was wrong with the server or the collection, to a caller who asked for something else.
pub(super) fn of_preparing(error: Error) -> Error {
    match error.kind() {
        ErrorKind::InvalidInput | ErrorKind::OutcomeUnknown | ErrorKind::Corrupt => {
            error.into_kind(ErrorKind::Unavailable)
        }
        _ => error,
    }
}

/// A question that looks through too many documents.
pub(super) fn took_long() -> Error {
    Error::new(ErrorKind::DeadlineExceeded, TOOK_LONG)
}

/// The store takes no more calls.
pub(super) fn closed() -> Error {
    Error::new(ErrorKind::Unavailable, "the store is closed")
}
