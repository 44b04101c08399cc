package db

import "context"

// Guard has whoever writes asked first: where guard refuses, the function of Tx does not run. It is for a process that may have lost
// its right to write without knowing. guard is called for every function and so remembers what it knows; it does not write.
func (d *DB) Guard(guard func(ctx context.Context) error) { d.guard.Store(&guard) }

// guarded is guard's refusal, or nil.
func (d *DB) guarded(ctx context.Context) error {
	if guard := d.guard.Load(); guard != nil {
		return (*guard)(ctx)
	}
	return nil
}
