package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"

	"chancery/internal/fault"
	"chancery/internal/store/access"
	"chancery/internal/store/db"
	"chancery/internal/store/once"
)

// act runs a call whose service keeps the answer in the transaction of what is done, and gives a call that is repeated with its
// idempotency key the first one's answer. It is looked for here as well as in the service, since what stands before the act,
// such as the operator who is to be removed, may be gone by then.
func act[A any](ctx context.Context, s *Server, in interface{ given() string }, do func(once.Call) (A, error)) (A, error) {
	if in.given() == "" {
		return do(once.Call{})
	}
	call, err := repeatable(ctx, in)
	if err != nil {
		return *new(A), err
	}
	answer, found, err := earlier[A](ctx, s, call)
	if err != nil || found {
		return answer, err
	}
	answer, refused := do(call)
	if refused == nil || errors.Is(refused, db.ErrUnknownOutcome) || fault.Is(refused, fault.Unavailable) {
		return answer, refused
	}
	// The same call may have been on its way twice, and this one came second.
	if first, found, err := earlier[A](ctx, s, call); err == nil && found {
		return first, nil
	}
	return answer, refused
}

// repeatable is a call as services know it again.
func repeatable(ctx context.Context, in interface{ given() string }) (once.Call, error) {
	text, err := json.Marshal(in)
	if err != nil {
		return once.Call{}, fmt.Errorf("encode the call: %w", err)
	}
	return once.Call{
		Caller: "api:" + access.From(ctx).ID, // apart from the keys of those services that know callers by their ID
		Key:    in.given(), Request: once.Hash([]byte(callOf(ctx).operation), text),
	}, nil
}

// earlier is the answer to an earlier call with the key.
func earlier[A any](ctx context.Context, s *Server, call once.Call) (answer A, found bool, err error) {
	err = s.DB.Tx(ctx, func(tx *db.Tx) error {
		answer, found, err = once.Earlier[A](ctx, tx, call)
		return err
	})
	if found && err == nil {
		callOf(ctx).event.Add(slog.Bool("replayed", true))
	}
	return answer, found, err
}
