//! The book-keeping: which transactions were begun, which are known to be committed, and what the database must
//! therefore hold. Pure.
//!
//! A transaction moves money between two accounts and leaves a row with its number in a journal.
//!
//! ```text
//!             ┌─ COMMIT acknowledged ──► acked: its row must be there
//!  begun ─────┼─ the server refused it ─► aborted: its row must not be there
//!             └─ the connection broke ──► doubtful: either
//! ```
//!
//! Whichever rows are there, each account's balance must be what they make of it: half a transaction shows at once.

use std::collections::{BTreeMap, BTreeSet};

use crate::ledger::complain;

/// Accounts among which money is moved.
pub const ACCOUNTS: u32 = 64;
/// What each has at first.
pub const BALANCE: i64 = 1000;

/// A transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transfer {
    /// Never used twice.
    pub id: i64,
    pub debit: u32,
    /// Another account than `debit`.
    pub credit: u32,
    pub amount: i64,
}

impl Transfer {
    /// The transaction with this number: which accounts and how much follow from it alone.
    fn numbered(id: i64) -> Self {
        // Knuth's multiplicative hash: spread well enough, and the same in every run.
        let hash = (id as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        let debit = (hash % u64::from(ACCOUNTS)) as u32;
        let step = 1 + (hash >> 8) % u64::from(ACCOUNTS - 1);
        let credit = (debit + step as u32) % ACCOUNTS;
        Self { id, debit, credit, amount: 1 + (hash >> 16) as i64 % 100 }
    }

    /// What it does to an account's balance, in the order in which accounts have to be locked so that no two
    /// transactions wait for each other.
    pub fn changes(&self) -> [(u32, i64); 2] {
        let mut both = [(self.debit, -self.amount), (self.credit, self.amount)];
        both.sort_by_key(|(account, _)| *account);
        both
    }
}

/// What a database holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Contents {
    pub journal: Vec<Transfer>,
    /// Account and balance.
    pub balances: Vec<(u32, i64)>,
}

/// What was wrong with it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Findings {
    /// Acknowledged transactions that are not there or not as they were sent, and accounts whose balance is not what
    /// the journal makes of it.
    pub lost: u64,
    /// Rows that nobody sent, or that the server had refused.
    pub repeated: u64,
    pub complaints: Vec<String>,
}

/// The book.
#[derive(Debug, Default)]
pub struct SqlBook {
    last: i64,
    open: BTreeSet<i64>,
    acked: BTreeSet<i64>,
    doubtful: BTreeSet<i64>,
    complaints: Vec<String>,
}

impl SqlBook {
    /// The next transaction, written down: it may be sent now.
    pub(super) fn begin(&mut self) -> Transfer {
        self.last += 1;
        self.open.insert(self.last);
        Transfer::numbered(self.last)
    }

    /// Its COMMIT was acknowledged.
    pub(super) fn committed(&mut self, id: i64) {
        self.open.remove(&id);
        self.acked.insert(id);
    }

    /// The server said that it is not done.
    pub(super) fn aborted(&mut self, id: i64, why: &str) {
        self.open.remove(&id);
        complain(&mut self.complaints, format!("transaction {id} was refused: {why}"));
    }

    /// Its connection broke: nobody knows.
    pub(super) fn broken(&mut self, id: i64) {
        if self.open.remove(&id) {
            self.doubtful.insert(id);
        }
    }

    /// Every connection is gone.
    pub(super) fn all_broken(&mut self) {
        self.doubtful.append(&mut self.open);
    }

    /// Transactions that were acknowledged.
    pub fn acked(&self) -> u64 {
        self.acked.len() as u64
    }

    /// Transactions of which nobody knows.
    pub fn doubtful(&self) -> u64 {
        (self.doubtful.len() + self.open.len()) as u64
    }

    /// Holds the database against the book. No transaction may be under way.
    pub(super) fn check(&self, found: &Contents) -> Findings {
        let mut all = Findings { complaints: self.complaints.clone(), ..Findings::default() };
        let mut rows = BTreeMap::new();
        let mut expected: BTreeMap<u32, i64> = (0..ACCOUNTS).map(|account| (account, BALANCE)).collect();
        for row in &found.journal {
            for (account, change) in row.changes() {
                *expected.entry(account).or_default() += change;
            }
            let sent = self.acked.contains(&row.id) || self.doubtful.contains(&row.id) || self.open.contains(&row.id);
            if !sent || rows.insert(row.id, *row).is_some() {
                all.repeated += 1;
                complain(&mut all.complaints, format!("the journal has {row:?}, which is not to be there"));
            }
        }
        for id in &self.acked {
            let wanted = Transfer::numbered(*id);
            if rows.get(id) != Some(&wanted) {
                all.lost += 1;
                complain(&mut all.complaints, format!("transaction {id} was acknowledged, and is {:?}", rows.get(id)));
            }
        }
        let balances: BTreeMap<u32, i64> = found.balances.iter().copied().collect();
        for (account, wanted) in expected {
            let found = balances.get(&account);
            if found != Some(&wanted) {
                all.lost += 1;
                complain(&mut all.complaints, format!("account {account} holds {found:?} instead of {wanted}"));
            }
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// How a transaction ends, and whether it is in the database.
    #[derive(Debug, Clone, Copy, PartialEq)]
    enum End {
        Committed,
        Aborted,
        BrokenAndThere,
        BrokenAndGone,
    }

    fn ends() -> impl Strategy<Value = Vec<End>> {
        let end = prop_oneof![
            6 => Just(End::Committed),
            1 => Just(End::Aborted),
            1 => Just(End::BrokenAndThere),
            1 => Just(End::BrokenAndGone),
        ];
        prop::collection::vec(end, 0..60)
    }

    /// An honest server's database, and the book of its client.
    fn played(ends: &[End]) -> (SqlBook, Contents) {
        let mut book = SqlBook::default();
        let mut balances: BTreeMap<u32, i64> = (0..ACCOUNTS).map(|a| (a, BALANCE)).collect();
        let mut journal = Vec::new();
        for end in ends {
            let transfer = book.begin();
            if matches!(end, End::Committed | End::BrokenAndThere) {
                journal.push(transfer);
                *balances.get_mut(&transfer.debit).unwrap() -= transfer.amount;
                *balances.get_mut(&transfer.credit).unwrap() += transfer.amount;
            }
            match end {
                End::Committed => book.committed(transfer.id),
                End::Aborted => book.aborted(transfer.id, "for a test"),
                _ => book.broken(transfer.id),
            }
        }
        (book, Contents { journal, balances: balances.into_iter().collect() })
    }

    proptest! {
        #[test]
        fn an_honest_server_has_lost_nothing(ends in ends()) {
            let (book, found) = played(&ends);
            let f = book.check(&found);
            prop_assert_eq!((f.lost, f.repeated), (0, 0), "{:?}", f.complaints);
            prop_assert_eq!(found.balances.iter().map(|(_, b)| b).sum::<i64>(), BALANCE * i64::from(ACCOUNTS));
            prop_assert_eq!(book.acked() as usize, ends.iter().filter(|e| **e == End::Committed).count());
        }

        /// A database that fell back to an earlier moment: whole, and too old.
        #[test]
        fn each_transaction_behind_an_old_checkpoint_is_lost(ends in ends(), keep in 0usize..60) {
            let (book, _) = played(&ends);
            let keep = keep.min(ends.len());
            let (_, old) = played(&ends[..keep]);
            let lost = ends[keep..].iter().filter(|e| **e == End::Committed).count() as u64;
            let f = book.check(&old);
            prop_assert_eq!((f.lost, f.repeated), (lost, 0));
        }

        /// A row without its money, or money without its row.
        #[test]
        fn half_a_transaction_shows(ends in ends(), victim in any::<prop::sample::Index>()) {
            let (book, found) = played(&ends);
            prop_assume!(!found.journal.is_empty());
            let mut torn = found.clone();
            let row = torn.journal.remove(victim.index(found.journal.len()));
            // The two accounts' balances are wrong now; and the row, if it was acknowledged.
            let known = u64::from(book.acked.contains(&row.id));
            prop_assert_eq!(book.check(&torn).lost, 2 + known);
        }
    }

    #[test]
    fn accounts_differ_and_are_locked_in_order() {
        for id in 1..5000 {
            let t = Transfer::numbered(id);
            assert!(t.debit != t.credit && t.debit < ACCOUNTS && t.credit < ACCOUNTS && t.amount > 0, "{t:?}");
            let [first, second] = t.changes();
            assert!(first.0 < second.0 && first.1 + second.1 == 0);
        }
    }

    #[test]
    fn rows_that_nobody_sent() {
        let (mut book, mut found) = played(&[End::Committed]);
        book.begin();
        book.aborted(2, "for a test");
        let stray = Transfer::numbered(2);
        found.journal.extend([stray, Transfer::numbered(99)]);
        let f = book.check(&found);
        assert_eq!(f.repeated, 2);
        assert!(f.complaints[0].contains("refused"));
    }

    #[test]
    fn a_cut_leaves_doubt() {
        let mut book = SqlBook::default();
        book.begin();
        book.begin();
        book.committed(1);
        book.all_broken();
        assert_eq!((book.acked(), book.doubtful()), (1, 1));
    }
}
