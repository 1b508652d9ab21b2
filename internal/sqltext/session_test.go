package sqltext

import "testing"

// TestSession tells what a text does to the session that it runs in.
func TestSession(t *testing.T) {
	facts := Facts{Functions: map[string]Access{"set_tenant": Write, "mine": Read}, Called: map[string]Access{"login": Write, "f": Read}}
	for sql, want := range map[string]struct{ leaves, only bool }{
		"select 1":                        {false, false},
		"insert into t values (1)":        {false, false},
		"create table t (a int)":          {false, false},
		"select nextval('s')":             {false, false},
		"select pg_notify('a', 'b')":      {false, false},
		"set work_mem = '8MB'":            {true, true},
		"set local work_mem = '8MB'":      {true, true},
		"set transaction read write":      {true, true},
		"set constraints all deferred":    {true, true},
		"reset all":                       {true, true},
		"select set_config($1, $2, true)": {true, true},
		"select pg_catalog.set_config('a.b', 'c', true), now() from t where a > 1": {true, true},
		"select setseed(0.5)":   {true, true},
		"select isn_weak(true)": {true, true},
		"select set_config($1, $2, true), pg_try_advisory_xact_lock(1)": {true, false},
		"select set_config($1, $2, true) from t for update":             {true, false},
		"with x as (delete from t) select set_config($1, $2, true)":     {true, false},
		"select pg_try_advisory_xact_lock(1)":                           {false, false},
		"select pg_advisory_lock(1)":                                    {true, false},
		"select pg_try_advisory_lock_shared(1)":                         {true, false},
		"set work_mem = '8MB'; select 1":                                {true, true},
		"set work_mem = '8MB'; delete from t":                           {true, false},
		"insert into t select set_config('a', 'b', false)":              {true, false},
		"savepoint a":                                               {false, true},
		"release savepoint a":                                       {false, true},
		"rollback to savepoint a":                                   {false, true},
		"begin; select 1; commit":                                   {false, true},
		"begin; insert into t values (1)":                           {false, false},
		"rollback prepared 'x'":                                     {false, false},
		"commit prepared 'x'":                                       {false, false},
		"prepare transaction 'x'":                                   {false, false},
		"explain commit":                                            {false, false},
		"declare c cursor for select * from t":                      {false, true},
		`declare "c" no scroll cursor with hold for values (1)`:     {false, true},
		"declare c cursor for with x as (select 1) select * from x": {false, true},
		"declare c cursor for (select 1)":                           {false, true},
		"declare c cursor for select * from t for update":           {false, false},
		"declare c cursor for select nextval('s')":                  {false, false},
		"declare c cursor":                                          {false, false},
		"call p()":                                                  {true, false},
		"CALL s.p(1)":                                               {true, false},
		"execute q(1)":                                              {true, false},
		"explain analyze execute q":                                 {true, false},
		"load 'auto_explain'":                                       {true, false},
		"do $$ begin end $$":                                        {true, false},
		"create temp table t (a int)":                               {true, false},
		`create table "pg_temp".t (a int)`:                          {true, false},
		`create table U&"pg_temp".t (a int)`:                        {true, false},
		"create table pg_temp.t (a int)":                            {true, false},
		"select * into temporary x from t":                          {true, false},
		"select hypopg_create_index('x')":                           {true, false},
		"select pgv_set('a', 'b', 1)":                               {true, false},
		"select dbms_output.put_line('x')":                          {true, false},
		"select dblink_connect('x')":                                {true, false},
		"select set_tenant(1)":                                      {true, false},
		"select app.login($1)":                                      {true, false},
		"select mine(1), f(2)":                                      {false, false},
		"select call, execute, load, declare from t":                {false, false},
	} {
		s := Inspect(sql, facts)
		if s.LeavesState != want.leaves || s.SessionOnly != want.only {
			t.Errorf("leaves something: %v, want %v; is about the session only: %v, want %v: %s",
				s.LeavesState, want.leaves, s.SessionOnly, want.only, sql)
		}
		if s.SessionOnly && s.Access != Write {
			t.Errorf("both a read and about the session: %s", sql)
		}
	}
}
