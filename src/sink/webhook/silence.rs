//! Pure: what a request without an answer means, by how many there were in a row.
//!
//! A few are their tasks' own matter: the receiver may hang on something in them. Many are the receiver's. From then on each
//! further one is, too: it is a probe, a task now and then, and must not bring the receiver back by itself. But not for ever: the
//! task that is sent each time may be the very one that it hangs on.

/// So many probes without an answer, and one of them is its task's own matter again.
const PROBES: usize = 16;

/// Counts requests without an answer.
#[derive(Debug)]
pub(super) struct Silence {
    /// So many in a row are the receiver's.
    many: usize,
    row: usize,
}

impl Silence {
    /// Where so many go at a time.
    pub(super) fn new(side_by_side: usize) -> Silence {
        let many = side_by_side.max(2);
        Silence { many, row: 0 }
    }

    /// There was an answer.
    pub(super) fn is_broken(&mut self) {
        self.row = 0;
    }

    /// A request had none. Whether it is the receiver that is away.
    pub(super) fn is_away(&mut self) -> bool {
        self.row += 1;
        if self.row < self.many + PROBES {
            return self.row >= self.many;
        }
        self.row = 0;
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_in_a_row_are_the_receivers_until_a_task_has_to_answer_for_it() {
        let mut silence = Silence::new(4);
        let mut row = |count: usize| (0..count).map(|_| silence.is_away()).collect::<Vec<_>>();
        assert_eq!(row(3), [false; 3]);
        assert_eq!(row(PROBES), [true; PROBES]);
        assert_eq!(row(4), [false; 4], "one that pays, and three of a new row");
        assert_eq!(row(1), [true]);
        silence.is_broken();
        assert!(!silence.is_away());
        let mut alone = Silence::new(1);
        assert!(!alone.is_away() && alone.is_away());
    }
}
