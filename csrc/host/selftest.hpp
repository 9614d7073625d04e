// What the parts of the self-test share.
#pragma once
#include <cstdint>
#include <string>

// Counts a check, and tells of one that fails.
void check(bool right, const std::string& what);

// selftest_threads.cpp; the hosts lend as many threads as are wanted, three at most, and no other than the caller
void check_policy();
void check_neighbours();
void check_host_threads();
int lend_all(int64_t begin, int64_t end, int64_t grain, void (*f)(int64_t, int64_t, void*), void* context);
int lend_three(int64_t begin, int64_t end, int64_t grain, void (*f)(int64_t, int64_t, void*), void* context);
int lend_none(int64_t begin, int64_t end, int64_t grain, void (*f)(int64_t, int64_t, void*), void* context);
