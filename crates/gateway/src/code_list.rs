//! Every error code, in the order of the table.

use crate::code::ErrorCode;
#[cfg(test)]
use crate::code::ErrorCodeRow;

impl ErrorCode {
    /// Every code.
    pub(crate) fn every() -> impl Iterator<Item = Self> {
        std::iter::successors(Some(Self::InvalidPayload), |code| code.next())
    }

    /// Every code with its status.
    #[cfg(test)]
    pub(crate) fn all() -> Vec<(&'static str, u16)> {
        let rows = Self::every().map(Self::row);
        rows.map(|ErrorCodeRow(name, _, status, ..)| (name, status.as_u16())).collect()
    }

    /// The next code of the table. The compiler rejects a table that leaves one out.
    fn next(self) -> Option<Self> {
        Some(match self {
            Self::InvalidPayload => Self::InvalidRequest,
            Self::InvalidRequest => Self::InvalidPolicy,
            Self::InvalidPolicy => Self::UnknownPosition,
            Self::UnknownPosition => Self::NotFound,
            Self::NotFound => Self::MethodNotAllowed,
            Self::MethodNotAllowed => Self::RequestTimeout,
            Self::RequestTimeout => Self::Conflict,
            Self::Conflict => Self::Duplicate,
            Self::Duplicate => Self::PayloadTooLarge,
            Self::PayloadTooLarge => Self::UnsupportedMediaType,
            Self::UnsupportedMediaType => Self::QueueFull,
            Self::QueueFull => Self::BatchIncomplete,
            Self::BatchIncomplete => Self::QueueClosed,
            Self::QueueClosed => Self::QueueNotEmpty,
            Self::QueueNotEmpty => Self::ConfirmationRequired,
            Self::ConfirmationRequired => Self::IdempotencyConflict,
            Self::IdempotencyConflict => Self::TooManyWaiters,
            Self::TooManyWaiters => Self::TooManyEventStreams,
            Self::TooManyEventStreams => Self::TooManyReaders,
            Self::TooManyReaders => Self::TooManyQueues,
            Self::TooManyQueues => Self::TooManyCronEntries,
            Self::TooManyCronEntries => Self::TooManyChannels,
            Self::TooManyChannels => Self::TooManyMembers,
            Self::TooManyMembers => Self::TooManySubscriptions,
            Self::TooManySubscriptions => Self::TooManyKeys,
            Self::TooManyKeys => Self::FixedMember,
            Self::FixedMember => Self::CrossSiteRequest,
            Self::CrossSiteRequest => Self::HostNotAllowed,
            Self::HostNotAllowed => Self::KeyRequired,
            Self::KeyRequired => Self::InvalidKey,
            Self::InvalidKey => Self::InvalidToken,
            Self::InvalidToken => Self::IssuerUnavailable,
            Self::IssuerUnavailable => Self::TokensOff,
            Self::TokensOff => Self::ScopeRequired,
            Self::ScopeRequired => Self::NameNotAllowed,
            Self::NameNotAllowed => Self::KeyLimitExceeded,
            Self::KeyLimitExceeded => Self::TooManyStreamsOfKey,
            Self::TooManyStreamsOfKey => Self::UpgradeRequired,
            Self::UpgradeRequired => Self::TooManyBodies,
            Self::TooManyBodies => Self::TooManyAnswers,
            Self::TooManyAnswers => Self::BackendUnavailable,
            Self::BackendUnavailable => Self::BackendFull,
            Self::BackendFull => Self::MemoryBudgetUsed,
            Self::MemoryBudgetUsed => Self::BackendCannotSave,
            Self::BackendCannotSave => Self::SealedData,
            Self::SealedData => Self::Internal,
            Self::Internal => return None,
        })
    }
}
