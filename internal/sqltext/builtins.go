package sqltext

import "strings"

// Names that are called so often that the catalog should not be asked about them. An app's own function may have one of these
// names, with other arguments or in front of pg_catalog in the search_path. If it writes, it is in Facts.

// builtIns are functions of pg_catalog, in PostgreSQL 14 to 19, none of which is VOLATILE whatever its arguments.
const builtIns = `
abs aclexplode acos acosd acosh age any_value area array_agg array_dims array_fill array_length array_lower
array_ndims array_position array_positions array_remove array_replace array_reverse array_sort array_to_json
array_to_string array_to_tsvector array_upper ascii asin asind asinh atan atan2 atan2d atand atanh avg bit_and
bit_count bit_length bit_or bit_xor bool bool_and bool_or box bpchar btrim bytea cardinality casefold cbrt ceil
ceiling center char_length character_length chr cidr circle col_description concat concat_ws convert
convert_from convert_to corr cos cosd cosh cot cotd count covar_pop covar_samp crc32 crc32c cume_dist
current_database current_schema current_schemas current_user database_to_xmlschema date date_add date_bin
date_part date_subtract date_trunc datemultirange daterange decode degrees dense_rank diagonal diameter div
encode enum_first enum_last enum_range erf erfc error_on_null every exp factorial family first_value float4
float8 floor format format_type gamma gcd generate_series generate_subscripts get_bit get_byte
get_current_ts_config has_any_column_privilege has_column_privilege has_database_privilege
has_foreign_data_wrapper_privilege has_function_privilege has_language_privilege has_largeobject_privilege
has_parameter_privilege has_schema_privilege has_sequence_privilege has_server_privilege has_table_privilege
has_tablespace_privilege has_type_privilege height host hostmask inet_client_addr inet_client_port initcap int2
int4 int4multirange int4range int8 int8multirange int8range is_normalized isclosed isempty isfinite json_agg
json_agg_strict json_array_elements json_array_elements_text json_array_length json_build_array
json_build_object json_each json_each_text json_object_agg json_object_agg_strict json_object_agg_unique
json_object_agg_unique_strict json_object_keys json_populate_record json_populate_recordset json_strip_nulls
json_to_record json_to_recordset json_to_tsvector json_typeof jsonb_agg jsonb_agg_strict jsonb_array_elements
jsonb_array_elements_text jsonb_array_length jsonb_build_array jsonb_build_object jsonb_each jsonb_each_text
jsonb_insert jsonb_object jsonb_object_agg jsonb_object_agg_strict jsonb_object_agg_unique
jsonb_object_agg_unique_strict jsonb_object_keys jsonb_path_exists jsonb_path_exists_tz jsonb_path_match
jsonb_path_match_tz jsonb_path_query jsonb_path_query_array jsonb_path_query_array_tz jsonb_path_query_first
jsonb_path_query_first_tz jsonb_path_query_tz jsonb_populate_record jsonb_populate_record_valid
jsonb_populate_recordset jsonb_pretty jsonb_set jsonb_set_lax jsonb_strip_nulls jsonb_to_record
jsonb_to_recordset jsonb_to_tsvector jsonb_typeof justify_days justify_hours justify_interval lag last_value
lcm lead left length lgamma line ln log log10 lower lower_inc lower_inf lpad lseg ltrim macaddr macaddr8
make_date make_interval make_time make_timestamp make_timestamptz masklen max md5 min min_scale mod mode money
multirange mxid_age netmask network now nth_value ntile num_nonnulls num_nulls nummultirange numnode numrange
obj_description octet_length oid oid8 overlaps parse_ident path percent_rank percentile_cont percentile_disc
phraseto_tsquery pi plainto_tsquery point polygon pow power querytree quote_ident quote_literal quote_nullable
radians radius range_agg range_intersect_agg range_merge range_minus_multi rank regexp_count regexp_instr
regexp_like regexp_match regexp_matches regexp_replace regexp_split_to_array regexp_split_to_table
regexp_substr regr_avgx regr_avgy regr_count regr_intercept regr_r2 regr_slope regr_sxx regr_sxy regr_syy
repeat replace reverse right round row_number row_security_active row_to_json rpad rtrim scale
schema_to_xmlschema session_user set_bit set_byte setweight sha224 sha256 sha384 sha512 shobj_description sign
sin sind sinh slope split_part sqrt statement_timestamp stddev stddev_pop stddev_samp string_agg
string_to_array string_to_table strip strpos substr sum system_user table_to_xmlschema tan tand tanh text
timestamptz timetz to_ascii to_bin to_char to_date to_hex to_json to_jsonb to_number to_oct to_regclass
to_regcollation to_regdatabase to_regnamespace to_regoper to_regoperator to_regproc to_regprocedure to_regrole
to_regtype to_regtypemod to_timestamp to_tsquery to_tsvector transaction_timestamp translate trim_array
trim_scale trunc ts_debug ts_delete ts_filter ts_headline ts_lexize ts_parse ts_rank ts_rank_cd ts_token_type
tsmultirange tsrange tstzmultirange tstzrange tsvector_to_array txid_snapshot_xip txid_snapshot_xmax
txid_snapshot_xmin txid_visible_in_snapshot unistr unnest upper upper_inc upper_inf uuid uuid_extract_timestamp
uuid_extract_version var_pop var_samp varbit variance version websearch_to_tsquery width width_bucket xid xml
xmlagg xmlcomment xmltext xmlvalidate xpath xpath_exists`

// harmless are functions of PostgreSQL, and of the extensions that come with it, that are VOLATILE only because their results
// change. They have no effect.
const harmless = `
array_sample array_shuffle clock_timestamp current_query fips_mode gen_random_bytes gen_random_uuid gen_salt lo_get
normal_rand pg_sleep pg_sleep_for pg_sleep_until pgp_pub_encrypt pgp_pub_encrypt_bytea pgp_sym_encrypt
pgp_sym_encrypt_bytea random random_normal ssl_cipher ssl_client_cert_present ssl_client_dn ssl_client_dn_field
ssl_client_serial ssl_extension_info ssl_is_used ssl_issuer_dn ssl_issuer_field ssl_version timeofday timezone
uuid_generate_v1 uuid_generate_v1mc uuid_generate_v4 uuidv4 uuidv7 xslt_process
`

// syntax are words that are not the name of a function when a parenthesis follows, as the grammar uses them. With quotes they
// may be.
const syntax = `
array asymmetric between bigint bit boolean both by cast char character check coalesce columns cube dec decimal exists extract filter float
greatest grouping inout int integer interval json json_array json_arrayagg json_exists json_object json_objectagg
json_query json_scalar json_serialize json_table json_value lateral leading least materialized merge_action national nchar none
normalize nullif numeric out over overlay placing position precision real recursive rollup row setof sets smallint some substring
symmetric time timestamp trailing treat trim unique values varchar variadic xmlattributes xmlconcat xmlelement xmlexists xmlforest
xmlnamespaces xmlparse xmlpi xmlroot xmlserialize xmltable
`

// safeNames has builtIns, harmless and syntax.
var safeNames = func() *nameTable {
	t := newNameTable(2048)
	for _, names := range []string{builtIns, harmless, syntax} {
		for _, name := range strings.Fields(names) {
			t.add(name, 1)
		}
	}
	return t
}()

var harmlessFunctions = func() map[string]bool {
	t := map[string]bool{}
	for _, name := range strings.Fields(harmless) {
		t[name] = true
	}
	return t
}()

// IsHarmless reports whether a function of PostgreSQL or of its extensions is VOLATILE and has no effect.
func IsHarmless(name string) bool { return harmlessFunctions[name] }
