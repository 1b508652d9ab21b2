package compat

import (
	"context"
	"errors"
	"os"
	"testing"

	"github.com/flyregion/flyregion"
	"github.com/flyregion/flyregion/compat/books"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
)

var _ books.DBTX = (*flyregion.Pool)(nil)

func TestSQLC(t *testing.T) {
	schema, err := os.ReadFile("sqlc/schema.sql")
	if err != nil {
		t.Fatal(err)
	}
	setUp(t, string(schema))
	pool := newPool(t)
	q := books.New(pool)
	ctx := t.Context()

	var author books.BooksAuthor
	onPrimary(t, "name: CreateAuthor", func() (err error) {
		author, err = q.CreateAuthor(ctx, books.CreateAuthorParams{Name: "Ursula", Born: pgtype.Date{}})
		return err
	})
	// The read after the write sees it, wherever it runs.
	if got, err := q.GetAuthor(ctx, author.ID); err != nil || got != author {
		t.Errorf("right after it was created it is %v, %v", got, err)
	}
	onPrimary(t, "copy \"books\".\"book\"", func() error {
		n, err := q.AddBooks(ctx, []books.AddBooksParams{
			{Isbn: "1", AuthorID: author.ID, Title: "One", Tags: []string{"new"}},
			{Isbn: "2", AuthorID: author.ID, Title: "Two", Tags: []string{}},
		})
		equal(t, "books copied", n, 2)
		return err
	})
	onPrimary(t, "name: SetGenre", func() (failed error) {
		q.SetGenre(ctx, []books.SetGenreParams{{Isbn: "1", Genre: books.BooksGenrePoetry}, {Isbn: "2", Genre: books.BooksGenreScience}}).Exec(func(_ int, err error) {
			failed = errors.Join(failed, err)
		})
		return failed
	})
	onPrimary(t, "name: RenameAuthor", func() error {
		n, err := q.RenameAuthor(ctx, books.RenameAuthorParams{ID: author.ID, Name: "Ursula K."})
		equal(t, "authors renamed", n, 1)
		return err
	})
	onReplica(t, pool, "name: GetAuthor", func() error {
		got, err := q.GetAuthor(ctx, author.ID)
		equal(t, "name", got.Name, "Ursula K.")
		return err
	})
	onReplica(t, pool, "name: ListBooks", func() error {
		list, err := q.ListBooks(ctx, books.ListBooksParams{AuthorID: author.ID, Tag: pgtype.Text{String: "new", Valid: true}})
		if err != nil || len(list) != 1 {
			t.Fatalf("%d books, %v", len(list), err)
		}
		equal(t, "author", list[0].Author, "Ursula K.")
		equal(t, "genre", list[0].BooksBook.Genre, books.BooksGenrePoetry)
		return nil
	})
	onReplica(t, pool, "name: BooksByGenre", func() (failed error) {
		q.BooksByGenre(ctx, []books.BooksGenre{books.BooksGenrePoetry, books.BooksGenreFiction}).Query(func(i int, rows []books.BooksByGenreRow, err error) {
			equal(t, "books of the genre", len(rows), 1-i)
			failed = errors.Join(failed, err)
		})
		return failed
	})
	onReplica(t, pool, "name: GetAuthor", func() error {
		_, err := q.GetAuthor(ctx, -1)
		equal(t, "ErrNoRows", errors.Is(err, pgx.ErrNoRows), true)
		return nil
	})
	onPrimary(t, "name: AuthorForUpdate", func() error {
		return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
			q := q.WithTx(tx)
			_, err := q.AuthorForUpdate(ctx, author.ID)
			if err != nil {
				return err
			}
			if err := q.DeleteBooks(ctx, author.ID); err != nil {
				return err
			}
			n, err := q.CountBooks(ctx, author.ID)
			equal(t, "books in the transaction", n, 0)
			return err
		})
	})
	if n, err := q.CountBooks(ctx, author.ID); err != nil || n != 0 {
		t.Errorf("after the transaction there are %d books, %v", n, err)
	}
	onReplica(t, pool, "name: CountBooks", func() error {
		return inReadOnly(ctx, pool, func(tx pgx.Tx) error {
			_, err := q.WithTx(tx).CountBooks(ctx, author.ID)
			return err
		})
	})
}

func inReadOnly(ctx context.Context, pool *flyregion.Pool, f func(pgx.Tx) error) error {
	return pgx.BeginTxFunc(ctx, pool, pgx.TxOptions{AccessMode: pgx.ReadOnly, IsoLevel: pgx.RepeatableRead}, f)
}
