// Package compat has nothing but tests, which run other people's libraries on a flyregion pool that spans two regions. It
// is a module of its own, so that those who import flyregion do not depend on them.
package compat

//go:generate go run github.com/sqlc-dev/sqlc/cmd/sqlc@v1.31.1 generate
