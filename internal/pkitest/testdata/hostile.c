/*
 * A PKCS #11 library for tests: it passes everything to the library BEHIND, and behaves in the calls below as the first line of the file
 * says at that moment whose name is its own with .mode after it:
 *
 *   (empty)          as the library behind it
 *   hang-initialize  C_Initialize does not return until the line is another
 *   hang-login       the same of C_Login
 *   hang-sign        the same of C_Sign
 *   removed          each call says CKR_DEVICE_REMOVED
 *   crash            C_Sign ends the process by a signal
 *   wrong            C_Sign flips a bit of the signature
 *   long             C_Sign says that the signature has a million octets
 *   flood            C_Initialize writes without end to both outputs, or until they are closed
 *   child            C_Initialize leaves a process behind that has both outputs open
 *
 * Each C_Login, whatever becomes of it, adds an octet to the file whose name ends in .logins, and each C_Sign to the one in .signs.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "pkcs11go.h"

static CK_FUNCTION_LIST own, *behind;

static FILE *beside(const char *suffix, const char *how)
{
	char path[4096];
	Dl_info self;
	if (!dladdr(&own, &self))
		return NULL;
	snprintf(path, sizeof path, "%s.%s", self.dli_fname, suffix);
	return fopen(path, how);
}

static int is(const char *mode)
{
	char line[64] = "";
	FILE *f = beside("mode", "r");
	if (f == NULL)
		return 0;
	if (fgets(line, sizeof line, f) == NULL)
		line[0] = 0;
	fclose(f);
	line[strcspn(line, "\n")] = 0;
	return strcmp(line, mode) == 0;
}

static void while_is(const char *mode)
{
	while (is(mode))
		usleep(5000);
}

static void count(const char *what)
{
	FILE *f = beside(what, "a");
	if (f != NULL) {
		fputc('x', f);
		fclose(f);
	}
}

static CK_RV initialize(CK_VOID_PTR args)
{
	while_is("hang-initialize");
	if (is("removed"))
		return CKR_DEVICE_REMOVED;
	if (is("flood")) {
		char block[65536];
		memset(block, 'x', sizeof block);
		for (int i = 0; i < 4000; i++)
			if (write(1, block, sizeof block) < 0 || write(2, block, sizeof block) < 0)
				break;
	}
	if (is("child") && fork() == 0) {
		for (;;)
			pause();
	}
	return behind->C_Initialize(args);
}

static CK_RV slots(CK_BBOOL present, CK_SLOT_ID_PTR list, CK_ULONG_PTR n)
{
	return is("removed") ? CKR_DEVICE_REMOVED : behind->C_GetSlotList(present, list, n);
}

static CK_RV session(CK_SLOT_ID slot, CK_FLAGS flags, CK_VOID_PTR app, CK_NOTIFY notify, CK_SESSION_HANDLE_PTR s)
{
	return is("removed") ? CKR_DEVICE_REMOVED : behind->C_OpenSession(slot, flags, app, notify, s);
}

static CK_RV login(CK_SESSION_HANDLE s, CK_USER_TYPE who, CK_UTF8CHAR_PTR pin, CK_ULONG n)
{
	count("logins");
	while_is("hang-login");
	return is("removed") ? CKR_DEVICE_REMOVED : behind->C_Login(s, who, pin, n);
}

static CK_RV sign_init(CK_SESSION_HANDLE s, CK_MECHANISM_PTR m, CK_OBJECT_HANDLE key)
{
	return is("removed") ? CKR_DEVICE_REMOVED : behind->C_SignInit(s, m, key);
}

static CK_RV sign(CK_SESSION_HANDLE s, CK_BYTE_PTR text, CK_ULONG size, CK_BYTE_PTR signature, CK_ULONG_PTR n)
{
	count("signs");
	while_is("hang-sign");
	if (is("removed"))
		return CKR_DEVICE_REMOVED;
	if (is("crash"))
		raise(SIGKILL);
	if (is("long") && signature == NULL) {
		*n = 1000000;
		return CKR_OK;
	}
	if (is("long")) {
		memset(signature, 7, *n);
		return CKR_OK;
	}
	CK_RV rv = behind->C_Sign(s, text, size, signature, n);
	if (rv == CKR_OK && signature != NULL && *n > 0 && is("wrong"))
		signature[*n - 1] ^= 1;
	return rv;
}

CK_RV C_GetFunctionList(CK_FUNCTION_LIST_PTR_PTR list)
{
	void *library = dlopen(BEHIND, RTLD_NOW);
	CK_C_GetFunctionList get = library ? (CK_C_GetFunctionList)dlsym(library, "C_GetFunctionList") : NULL;
	if (get == NULL || get(&behind) != CKR_OK)
		return CKR_GENERAL_ERROR;
	own = *behind;
	own.C_Initialize = initialize;
	own.C_GetSlotList = slots;
	own.C_OpenSession = session;
	own.C_Login = login;
	own.C_SignInit = sign_init;
	own.C_Sign = sign;
	*list = &own;
	return CKR_OK;
}
