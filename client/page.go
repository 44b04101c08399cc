package client

import (
	"context"
	"iter"
	"net/url"
)

// Page is a part of a list. Lists are paged by key: Next is the "after" of the following page, empty on the last.
type Page[T any] struct {
	Items []T    `json:"items" nullable:"false" doc:"the items of this page"`
	Next  string `json:"next,omitempty" doc:"the \"after\" of the next page; absent on the last"`
}

// pages walks all pages of a list. It ends at the first error, which it yields.
func pages[T any](ctx context.Context, c *Client, k call) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		query := url.Values{}
		for name, values := range k.query {
			query[name] = values
		}
		for {
			var page Page[T]
			if err := c.do(ctx, k.where(query), &page); err != nil {
				var none T
				yield(none, err)
				return
			}
			for _, item := range page.Items {
				if !yield(item, nil) {
					return
				}
			}
			if page.Next == "" {
				return
			}
			query.Set("after", page.Next)
		}
	}
}

// Collect gathers a list into a slice; for lists that are short by nature, such as issuers and profiles.
func Collect[T any](list iter.Seq2[T, error]) ([]T, error) {
	var all []T
	for item, err := range list {
		if err != nil {
			return nil, err
		}
		all = append(all, item)
	}
	return all, nil
}
