#pragma once

#define MOE_VERSION "0.1.0"
