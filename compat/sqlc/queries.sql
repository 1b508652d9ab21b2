-- name: CreateAuthor :one
insert into books.author (name, born) values ($1, $2) returning *;

-- name: GetAuthor :one
select * from books.author where id = $1;

-- name: AuthorForUpdate :one
select * from books.author where id = $1 for update;

-- name: RenameAuthor :execrows
update books.author set name = $2 where id = $1;

-- name: DeleteBooks :exec
delete from books.book where author_id = $1;

-- name: AddBooks :copyfrom
insert into books.book (isbn, author_id, title, tags) values ($1, $2, $3, $4);

-- name: SetGenre :batchexec
update books.book set genre = $2 where isbn = $1;

-- name: BooksByGenre :batchmany
select isbn, title from books.book where genre = $1 order by isbn;

-- name: ListBooks :many
select sqlc.embed(b), a.name as author
from books.book b join books.author a on a.id = b.author_id
where b.author_id = sqlc.arg(author_id) and (sqlc.narg(tag)::text is null or sqlc.narg(tag) = any (b.tags))
order by b.isbn;

-- name: CountBooks :one
select count(*) from books.book where author_id = $1;
