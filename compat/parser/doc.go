// Package parser has nothing but tests, which hold what flyregion says of SQL texts to PostgreSQL's own parser. It is apart
// from the other tests so that they need not wait for that parser to be compiled.
package parser
