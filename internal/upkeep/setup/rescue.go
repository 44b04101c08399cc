package setup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"chancery/internal/fault"
	"chancery/internal/pki/keyfile"
	"chancery/internal/store/access"
	"chancery/internal/store/audit"
	"chancery/internal/store/db"
	"chancery/internal/store/keys"
	"chancery/internal/upkeep/datadir"
)

// RescueClock sets the newest time that the authority has seen to this machine's time, even if that is back, and returns
// how it stood before. It is for the day after a clock was ahead: until then nothing would be signed. What was dated ahead
// of time stays so.
func RescueClock(ctx context.Context, dir datadir.Dir) (before time.Time, err error) {
	err = local(ctx, dir, func(s *Services, by access.Principal) error {
		now := time.Now()
		if before, err = s.DB.SeenTime(ctx); err != nil {
			return err
		}
		if err := s.DB.ResetClock(ctx, now); err != nil {
			return fmt.Errorf("set the authority's time: %w", err)
		}
		return s.DB.Tx(ctx, func(tx *db.Tx) error {
			return s.Audit.Append(ctx, tx, audit.Event{
				Time: now, Actor: by.Actor(), Action: "clock.rescue", Object: by.Name,
				Detail: map[string]any{"before": before.UTC().Format(time.RFC3339), "after": now.UTC().Format(time.RFC3339)},
			})
		})
	})
	return before, err
}

// RescueAdmin gives an administrator a new identity in the data directory, in the place of the one that ended or was lost:
// admin, or the first administrator by name who is not disabled. Who can do this has the node's key, and so could issue
// whatever he likes; it is no more than that, and it is in the audit.
func RescueAdmin(ctx context.Context, dir datadir.Dir) (name string, err error) {
	err = local(ctx, dir, func(s *Services, by access.Principal) error {
		admin, err := s.administrator(ctx, by)
		if err != nil {
			return err
		}
		name = admin.Name
		if err := keyfile.MkdirBeside(filepath.Dir(dir.AdminKey()), 0o700); err != nil {
			return err
		}
		return enrolInto(ctx, s, by, dir, admin, keyfile.ReplaceBeside)
	})
	return name, err
}

// NewRecovery says where ReplaceRecovery put the new key, and what it did.
type NewRecovery struct {
	File       string // the new key, sealed
	Passphrase string // the file with its passphrase, where one was made; empty where it was given
	keys.Replaced
}

// ReplaceRecovery makes a new recovery key, in file (offline/recovery.age where it is empty) and sealed as init seals it, and
// takes its wraps from the old one. The file is written first: a key that nobody has must not be the only one that opens the
// store. A file that is there already is not touched.
func ReplaceRecovery(ctx context.Context, dir datadir.Dir, file string, passphrase []byte) (made *NewRecovery, err error) {
	return replaceRecovery(ctx, dir, file, passphrase, 0)
}

// replaceRecovery is ReplaceRecovery with the work of sealing, as Options.RecoveryWork has it.
func replaceRecovery(ctx context.Context, dir datadir.Dir, file string, passphrase []byte, work int) (made *NewRecovery, err error) {
	if file == "" {
		file = filepath.Join(dir.Offline(), "recovery.age")
	}
	recovery, err := keys.GenerateRecovery()
	if err != nil {
		return nil, err
	}
	made = &NewRecovery{File: file}
	err = local(ctx, dir, func(s *Services, by access.Principal) error {
		if filepath.Dir(file) == dir.Offline() { // init made it; it may have been taken away whole
			if err := keyfile.MkdirBeside(dir.Offline(), 0o700); err != nil {
				return err
			}
		}
		if err := made.write(recovery, passphrase, work); err != nil {
			return err
		}
		made.Replaced, err = s.Keys.ReplaceRecovery(ctx, recovery, by.Actor())
		return err
	})
	return made, err
}

// write writes the sealed key and, where it makes one, the passphrase.
func (n *NewRecovery) write(recovery *keys.Recovery, passphrase []byte, work int) error {
	if _, err := os.Lstat(n.File); err == nil {
		return fault.New(fault.Conflict, "%s is there already, and may be the key that opens your backups", n.File).
			WithHint("take it away first, or name another file with --out")
	}
	if len(passphrase) == 0 {
		passphrase = newPassphrase()
		n.Passphrase = n.File + ".passphrase"
	}
	sealed, err := sealRecovery(recovery, passphrase, work)
	if err != nil {
		return err
	}
	if err := os.Mkdir(filepath.Dir(n.File), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if n.Passphrase != "" {
		if err := keyfile.WriteFile(n.Passphrase, append(slices.Clone(passphrase), '\n'), 0o600); err != nil {
			return fmt.Errorf("write the passphrase: %w", err)
		}
	}
	return keyfile.WriteFile(n.File, sealed, 0o600)
}
