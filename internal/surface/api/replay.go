package api

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"time"

	"chancery/internal/store/access"
	"chancery/internal/store/db"
	"chancery/internal/store/once"
)

// replay gives a call that is repeated with its idempotency key the first call's answer, for operations whose service knows
// nothing of keys. The answer is kept in a transaction after the act's own: a node that dies between the two leaves a
// repetition to what the service says of it, which for all these operations is harmless (the same again, or a conflict).
// What must not be done twice keeps its key in the act's transaction, and does not come here.
func replay[O any](ctx context.Context, s *Server, r route, key string, in any, do func() (*O, error)) (*O, error) {
	caller := "api:" + access.From(ctx).ID // apart from the keys that services keep
	text, err := json.Marshal(in)
	if err != nil {
		return nil, fmt.Errorf("encode the call: %w", err)
	}
	request := once.Hash([]byte(r.id), text)
	var answer []byte
	var found bool
	err = s.DB.ReadSnapshot(ctx, func(tx *db.Tx) (err error) {
		answer, found, err = once.Lookup(ctx, tx, caller, key, request)
		return err
	})
	if err != nil {
		return nil, err
	}
	if found {
		var out *O // null is the answer of operations that have none
		if err := json.Unmarshal(answer, &out); err != nil {
			return nil, fmt.Errorf("decode the answer that was kept: %w", err)
		}
		callOf(ctx).event.Add(slog.Bool("replayed", true))
		return out, nil
	}
	out, err := do()
	if err != nil {
		return nil, err
	}
	if answer, err = json.Marshal(out); err != nil {
		return nil, fmt.Errorf("encode the answer: %w", err)
	}
	err = s.DB.Tx(context.WithoutCancel(ctx), func(tx *db.Tx) error {
		return once.Remember(ctx, tx, caller, key, request, answer, time.Now())
	})
	if err != nil { // the act is done, and that is what the caller must hear
		callOf(ctx).event.Add(slog.String("not_kept", err.Error()))
	}
	return out, nil
}
