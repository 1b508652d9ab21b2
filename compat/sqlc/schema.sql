create schema books;

create type books.genre as enum ('fiction', 'poetry', 'science');

create table books.author (
    id bigint generated always as identity primary key,
    name text not null unique,
    born date
);

create table books.book (
    isbn text primary key,
    author_id bigint not null references books.author (id),
    title text not null,
    genre books.genre not null default 'fiction',
    tags text[] not null default '{}',
    added timestamptz not null default now()
);
