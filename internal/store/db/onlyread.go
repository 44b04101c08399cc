package db

// OnlyRead has every function of Tx refused with this error from now on, and CheckWrites say it; nil lets them run again. It is
// for a store that something else is about to take the place of: what is there is still read.
//
// Functions that run or wait already are waited for: when OnlyRead returns, nothing more is written.
func (d *DB) OnlyRead(why error) {
	l := &d.lane
	l.mu.Lock()
	defer l.mu.Unlock()
	l.onlyRead = why
	if l.idle.L == nil {
		l.idle.L = &l.mu
	}
	for why != nil && l.busy {
		l.idle.Wait()
	}
}

// refusedAll is why nothing is to be written, or nil.
func (d *DB) refusedAll() error {
	d.lane.mu.Lock()
	defer d.lane.mu.Unlock()
	return d.lane.onlyRead
}
